"""The seal of a list of files: it states the sha256 of its own bytes.

`seal` is the hash of the document's bytes with the seal's 64 hex digits written as zeros. Nothing
here imports more than the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BLANK = "0" * 64
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest file, seal included."""
    text = json.dumps({**manifest, "seal": BLANK}, indent=1, sort_keys=True, ensure_ascii=False)
    data = (text + "\n").encode()
    return data.replace(
        f'"seal": "{BLANK}"'.encode(), f'"seal": "{hashlib.sha256(data).hexdigest()}"'.encode()
    )


def _seal_of(data: bytes) -> str:
    return hashlib.sha256(_SEAL.sub(f'"seal": "{BLANK}"'.encode(), data, count=1)).hexdigest()


def is_sealed(data: bytes) -> bool:
    """Whether these are bytes that `sealed` gave."""
    found = _SEAL.search(data)
    return found is not None and _seal_of(data) == found.group(1).decode()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
