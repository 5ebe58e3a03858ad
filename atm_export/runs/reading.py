"""Reading a run folder: what a service trusts before it loads anything.

Nothing here imports more than NumPy.
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
from atm_export.inputs import InputSpec
from atm_export.runs.manifest import READ, FileEntry, Manifest, manifest_of, upgraded
from atm_export.runs.manifest_check import FILES
from atm_export.runs.seal import is_sealed, sha256
from atm_export.strict_json import MOST_BYTES, loads

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and the manifest that was checked against it."""

    folder: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def input(self) -> InputSpec:
        """What the graph takes."""
        return self.manifest.input


def open_run(folder: Path | str, *, allow_unproven: bool = False) -> Run:
    """Check every file of a run folder against its manifest.

    Raises, each a RunFolderError: NotARunError, ManifestError, RunFormatError, MissingFileError,
    ChangedFileError, UnprovenError.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name in sorted(manifest.files):
        check_file(folder, name, manifest.files[name])
    if not manifest.proven and not allow_unproven:
        raise UnprovenError(
            f"{folder}: its parity with PyTorch was not proven ({manifest.status}); "
            "see report.json, and export again"
        )
    return Run(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, whose files are not looked at; what `load_document` raises, and
    ManifestError unless every field is there and of its type."""
    return checked_manifest(folder, load_document(folder))


def load_document(folder: Path) -> dict[str, Any]:
    """What the manifest of `folder` holds, in the form of today's format; of its fields only the
    seal, the format and the files it lists are checked."""
    path = folder / MANIFEST
    data = _manifest_bytes(folder)
    try:
        document = loads(data, dict)
        version = document.get("format")
        if version is None or "files" not in document:
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
        FILES(document, "")
    except ValueError as error:
        raise ManifestError(f"{path}: {error}; export again") from error
    strange = [name for name in document["files"] if not _is_a_name(name)]
    if strange:
        raise ManifestError(f"{path} lists {strange[0]!r}, which is no file name; export again")
    return upgraded(document)


def checked_manifest(folder: Path, document: Mapping[str, Any]) -> Manifest:
    """The values of a manifest in `folder`; ManifestError for the first that cannot be meant."""
    try:
        return manifest_of(document)
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


def check_file(folder: Path, name: str, facts: FileEntry) -> None:
    """MissingFileError or ChangedFileError unless `name` is there with its bytes unchanged."""
    path = folder / name
    if not path.is_file():
        raise MissingFileError(f"{folder}: {name} is missing; export again")
    if path.stat().st_size != facts.bytes or sha256(path) != facts.sha256:
        raise ChangedFileError(
            f"{path} was changed after the export (sha256 differs); export again"
        )


def read_checked(run: Run, name: str) -> bytes:
    """The bytes of a listed file, hashed once more as read: what is checked is what is used."""
    path = run.folder / name
    facts = run.manifest.files.get(name)
    if facts is None:
        raise MissingFileError(f"{run.folder}: its manifest lists no {name}; export again")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingFileError(f"{run.folder}: {name} cannot be read; export again") from error
    if hashlib.sha256(data).hexdigest() != facts.sha256:
        raise ChangedFileError(
            f"{path} was changed after the export (sha256 differs); export again"
        )
    return data
