"""Reading a run folder: what a service trusts before it loads anything.

The manifest seals itself: `seal` is the sha256 of the manifest's own bytes with the seal's 64 hex
digits written as zeros. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atm_export.errors import (
    ChangedFileError,
    ManifestError,
    MissingFileError,
    NotARunError,
    RunFormatError,
    UnprovenError,
)

MANIFEST = "manifest.json"
FORMAT = 2
BLANK = "0" * 64
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and the manifest that was checked against it."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def graph(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def input(self) -> Mapping[str, Any]:
        """name, shape, dtype, normalised."""
        facts: Mapping[str, Any] = self.manifest["interface"]["input"]
        return facts


def open_run(folder: Path | str, *, allow_unproven: bool = False) -> Run:
    """Check every file of a run folder against its manifest.

    Raises, each a RunFolderError: NotARunError, ManifestError, RunFormatError, MissingFileError,
    ChangedFileError, UnprovenError.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    for name in sorted(manifest["files"]):
        check_file(folder, name, manifest["files"][name])
    if manifest.get("status") != "proven" and not allow_unproven:
        raise UnprovenError(
            f"{folder}: its parity with PyTorch was not proven ({manifest.get('status')}); "
            "see report.json, and export again"
        )
    return Run(folder, manifest)


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, its seal and format checked."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotARunError(
            f"{folder} is no run folder: {MANIFEST} cannot be read; "
            "give the folder that `atm-export MODEL` wrote"
        ) from error
    try:
        manifest = json.loads(data)
        listed = manifest["files"]
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path} is damaged; export again") from error
    if version != FORMAT:
        raise RunFormatError(
            f"{folder} was written in run format {version}, this atm-export reads {FORMAT}; "
            "export again with --force"
        )
    if (
        not is_sealed(data)
        or not isinstance(listed, dict)
        or any("/" in n or "\\" in n for n in listed)
    ):
        raise ManifestError(f"{path} was changed after the export; export again")
    return dict(manifest)


def check_file(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """MissingFileError or ChangedFileError unless `name` is there with its bytes unchanged."""
    path = folder / name
    if not path.is_file():
        raise MissingFileError(f"{folder}: {name} is missing; export again")
    if path.stat().st_size != facts["bytes"] or sha256(path) != facts["sha256"]:
        raise ChangedFileError(
            f"{path} was changed after the export (sha256 differs); export again"
        )


def read_checked(run: Run, name: str) -> bytes:
    """The bytes of a listed file, hashed once more as read: what is checked is what is used."""
    path = run.folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingFileError(f"{run.folder}: {name} cannot be read; export again") from error
    if hashlib.sha256(data).hexdigest() != run.manifest["files"][name]["sha256"]:
        raise ChangedFileError(
            f"{path} was changed after the export (sha256 differs); export again"
        )
    return data


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
