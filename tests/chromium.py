"""A page as Chromium shows it, by day or by night, on a phone or a desktop."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runs import ended

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
PROBE = Path(__file__).with_name("page_probe.js")
DARK = "--blink-settings=preferredColorScheme=0"


def chromium(folder: Path) -> list[str]:
    """A headless Chromium as a command line ($ATM_EXPORT_CHROMIUM, or on the path)."""
    own = [*CHROMIUM, f"--user-data-dir={folder / 'chromium'}"]
    given = os.environ.get("ATM_EXPORT_CHROMIUM")
    if given:
        return [*shlex.split(given), *own]
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell"):
        if path := shutil.which(name):
            return [path, *own]
    pytest.skip("no Chromium on the path (set ATM_EXPORT_CHROMIUM)")


@dataclass(frozen=True)
class Look:
    """What a reader sees: the probe's facts, and a picture [height, width, 3]."""

    facts: dict[str, Any]
    picture: np.ndarray


def look(html: str, folder: Path, width: int, dark: bool) -> Look:
    """The page in a frame of `width` (Chromium's own windows are not narrower than 500)."""
    html = html.replace(' loading="lazy"', "")
    probed = html.replace("style-src", "script-src 'unsafe-inline'; style-src", 1)
    probe = f"<script>{PROBE.read_text(encoding='utf-8')}</script></head>"
    probed = probed.replace("</head>", probe, 1)
    height, command = 9000, [*chromium(folder), *([DARK] if dark else [])]
    frame = (
        '<!doctype html><meta name="color-scheme" content="light dark"><body style="margin:0">'
        f'<iframe style="border:0;width:{width}px;height:{height}px" srcdoc="{{}}"></iframe>'
    )
    window = f"--window-size={max(width, 500)},{height}"
    for name, page_ in (("probed", probed), ("plain", html)):
        (folder / f"{name}.html").write_text(frame.format(escape(page_)), encoding="utf-8")
    url = (folder / "probed.html").as_uri()
    done = subprocess.run([*command, window, "--dump-dom", url], capture_output=True, text=True)
    found = re.search(r"<title>(\{.*?\})</title>", ended(done), re.S)
    assert found is not None, done.stderr
    facts = json.loads(unescape(found.group(1)))
    facts["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    shot, url = folder / "page.png", (folder / "plain.html").as_uri()
    done = subprocess.run([*command, window, f"--screenshot={shot}", url], capture_output=True)
    ended(done)
    with Image.open(shot) as image:
        return Look(facts, np.asarray(image.convert("RGB"))[: facts["height"], :width])
