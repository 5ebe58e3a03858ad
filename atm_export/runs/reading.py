"""Reading a run folder: what a service trusts before it loads anything.

Nothing here imports more than the standard library.
"""

from __future__ import annotations

import hashlib
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
from atm_export.runs.manifest import FILES, READ, check_manifest, upgraded
from atm_export.runs.seal import is_sealed, sha256
from atm_export.strict_json import MOST_BYTES, loads

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and the manifest that was checked against it.

    Of a run that `open_run` gave, the manifest's fields are there and of their types (`manifest`).
    """

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
    check_fields(folder, manifest)
    for name in sorted(manifest["files"]):
        check_file(folder, name, manifest["files"][name])
    if manifest.get("status") != "proven" and not allow_unproven:
        raise UnprovenError(
            f"{folder}: its parity with PyTorch was not proven ({manifest.get('status')}); "
            "see report.json, and export again"
        )
    return Run(folder, manifest)


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, in the form of today's format; its seal, its format and the files
    it lists are checked."""
    path = folder / MANIFEST
    data = _manifest_bytes(folder)
    try:
        manifest = loads(data, dict)
        version = manifest.get("format")
        if version is None or "files" not in manifest:
            raise ValueError("no format or no files")
    except ValueError as error:
        raise ManifestError(f"{path} is damaged ({error}); export again") from error
    if type(version) is not int or version not in READ:
        raise RunFormatError(
            f"{folder} was written in run format {str(version)[:40]}, this atm-export reads "
            f"{' and '.join(map(str, READ))}; export again with --force"
        )
    if not is_sealed(data):
        raise ManifestError(f"{path} was changed after the export; export again")
    try:
        FILES(manifest, "")
    except ValueError as error:
        raise ManifestError(f"{path}: {error}; export again") from error
    strange = [name for name in manifest["files"] if not _is_a_name(name)]
    if strange:
        raise ManifestError(f"{path} lists {strange[0]!r}, which is no file name; export again")
    return upgraded(manifest)


def check_fields(folder: Path, manifest: Mapping[str, Any]) -> None:
    """ManifestError unless every field that later code reads is there and of its type."""
    try:
        check_manifest(manifest)
    except ValueError as error:
        raise ManifestError(f"{folder / MANIFEST}: {error}; export again with --force") from error


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise FileNotFoundError(path)
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ManifestError(f"{path} has {size} bytes, {MOST_BYTES} at most; export again")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise NotARunError(
            f"{folder} is no run folder: {MANIFEST} cannot be read; "
            "give the folder that `atm-export MODEL` wrote"
        ) from error


def _is_a_name(name: str) -> bool:
    """Whether it names a file in the folder itself, on every system."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0:")


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
    facts = run.manifest["files"].get(name)
    if facts is None:
        raise MissingFileError(f"{run.folder}: its manifest lists no {name}; export again")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingFileError(f"{run.folder}: {name} cannot be read; export again") from error
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise ChangedFileError(
            f"{path} was changed after the export (sha256 differs); export again"
        )
    return data
