"""A headless Chromium that is steered: pages opened, files chosen, requests seen, pictures taken.

By the DevTools protocol (chromedevtools.github.io/devtools-protocol) over a pipe, in JSON messages
that end with a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.chromium import chromium

PATIENCE = 240  # seconds that a loaded machine may take for one step


class Page:
    """A page of one Chromium, its workers included. requests: every URL that it asked for, and what
    it wrote to the console or failed at in `complaints`."""

    def __init__(self, send: int, receive: int) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._send, self._receive, self._rest, self._count = send, receive, b"", 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call(
            "Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True
        )

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command to the page."""
        return self._call(method, self._session, **parameters)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression holds."""
        self.evaluate(
            "new Promise((done, failed) => { const begin = Date.now(); const look = () => "
            f"({condition}) ? done(true) : Date.now() - begin > {PATIENCE * 1000} "
            f"? failed({json.dumps(condition)}) : setTimeout(look, 50); look(); }})"
        )

    def look(self, width: int, height: int, dark: bool) -> None:
        """Show the page in such a window, by day or by night."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> np.ndarray:
        """The whole page as [height, width, 3]."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as image:
            return np.asarray(image.convert("RGB"))

    def choose_file(self, selector: str, file: Path) -> None:
        """As a person chooses a file in an <input type=file>."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        number = self._count
        self._put(number, method, session, parameters)
        while True:
            message = self._message()
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                return message["result"]

    def _put(self, number: int, method: str, session: str | None, parameters: object) -> None:
        message = {"id": number, "method": method, "params": parameters}
        data = json.dumps({**message, "sessionId": session} if session else message).encode()
        os.write(self._send, data + b"\0")

    def _message(self) -> dict[str, Any]:
        """The next message; what tells of requests and complaints is noted."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], PATIENCE)
            data = os.read(self._receive, 1 << 20) if ready else b""
            assert data, "Chromium says nothing any more"
            self._rest += data
        whole, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(whole)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Target.attachedToTarget":  # a worker, which waits to be let go
            for command in ("Network.enable", "Runtime.enable", "Runtime.runIfWaitingForDebugger"):
                self._count += 1
                self._put(self._count, command, told["sessionId"], {})
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])


@contextmanager
def steered(folder: Path) -> Iterator[Page]:
    """A page of a new Chromium, which ends with it. folder: for its profile."""
    ours, theirs = os.pipe(), os.pipe()
    read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (ours[0], theirs[1]))
    line = 'exec "$@" 3<&"$READ" 4>&"$WRITE"'
    process = subprocess.Popen(
        ["bash", "-c", line, "bash", *chromium(folder), "--remote-debugging-pipe"],
        pass_fds=(read, write),
        env={**os.environ, "READ": str(read), "WRITE": str(write)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (ours[0], theirs[1], read, write):
        os.close(fd)
    try:
        yield Page(ours[1], theirs[0])
    finally:
        process.kill()
        process.wait()
        os.close(ours[1])
        os.close(theirs[0])
