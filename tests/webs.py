"""Node and onnxruntime-web for the tests of `runtime/web`; without them these are skipped."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atm_export.errors import MissingDependencyError
from atm_export.web.package import package_folder

SCRIPT = Path(__file__).with_name("web") / "ask.mjs"
LEAST_NODE = 18  # Debian's
ARRAYS = {"Float32Array": np.float32, "BigInt64Array": np.int64}


def node() -> str:
    """Node on the path."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("no Node on the path")
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    if int(said.strip().removeprefix("v").split(".")[0]) < LEAST_NODE:
        pytest.skip(f"Node {said.strip()}: {LEAST_NODE} or newer is needed")
    return path


def npm_package() -> Path:
    """onnxruntime-web."""
    try:
        return package_folder()
    except MissingDependencyError as error:
        pytest.skip(str(error))


class Node:
    """A Node process that answers requests, see ask.mjs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def request(self, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "Node ended"
        return json.loads(line)

    def refusal(self, run: Path, precision: str = "fp32") -> str:
        """Why it does not load a run."""
        answer = self.request(run=str(run), precision=precision)
        assert answer.get("expected"), answer
        return str(answer["error"])


@contextmanager
def asked(package: Path | None = None) -> Iterator[Node]:
    """A Node process. package: onnxruntime-web, where a graph is to be run."""
    command = [node(), str(SCRIPT), str(package or "")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Node(process)
    finally:
        process.kill()
        process.communicate()


def text_of(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def array_of(told: dict[str, Any]) -> np.ndarray:
    """An output that ask.mjs gave."""
    data = base64.b64decode(told["data"])
    return np.frombuffer(data, ARRAYS[told["kind"]]).reshape(told["dims"])
