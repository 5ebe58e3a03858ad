"""The run folder: whole files or none, one writer at a time, hashes of everything.

Stages are written to `.<name>.work` beside the folder and moved in at the end, the manifest last:
a folder with a manifest that verifies is a finished run. An interrupted run leaves whole stage
files in the work folder, and the same command goes on from there. Files of others may lie in a run
folder; one that a run would overwrite is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from atm_export import marks, place
from atm_export.errors import OutputError, RunFolderError
from atm_export.place import output_errors
from atm_export.runs.graphs import Buffer
from atm_export.runs.manifest import FORMAT
from atm_export.runs.reading import MANIFEST, load_document
from atm_export.runs.seal import sealed, sha256
from atm_export.strict_json import loads

PACKAGES = ("atm-export", "torch", "timm", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy")


@dataclass(frozen=True)
class WorkFolder:
    """Where a run writes while it is not finished."""

    path: Path
    key: str

    def finished(self, name: str) -> Path | None:
        """A stage file that an interrupted run of the same key has left whole."""
        note = self.path / f"{name}.done"
        file = self.path / name
        whole = (
            note.is_file() and file.is_file() and note.read_text() == f"{self.key} {sha256(file)}"
        )
        return file if whole else None

    def write(self, name: str, data: bytes | Iterable[Buffer]) -> Path:
        """Write a stage file, at once or piece by piece, and then the note that it is whole."""
        digest = hashlib.sha256()
        with output_errors(self.path / name):
            part = self.path / f"{name}.part"
            with part.open("wb") as file:
                for piece in (data,) if isinstance(data, bytes) else data:
                    file.write(piece)
                    digest.update(piece)
            part.replace(self.path / name)
            (self.path / f"{name}.done").write_text(f"{self.key} {digest.hexdigest()}")
        return self.path / name


@contextmanager
def working(out: Path, key: str, remedy: str = place.REMEDY) -> Iterator[WorkFolder]:
    """The locked work folder of `out`; removed unless the run is interrupted."""
    path = place.beside(out, "work")
    with output_errors(out, remedy):
        made = [p for p in (path.parent, *path.parents) if not p.exists()]
        try:
            place.own_folder(path)
        except OSError:
            _remove_empty(made)
            raise
    busy = f"another run is writing to {out}; wait for it, or {remedy}"
    lock = place.lock(path / "lock", busy)
    try:
        with output_errors(out, remedy):
            place.restore(path, out)
        yield WorkFolder(path, key)
    except KeyboardInterrupt:
        _keep_whole_files(path)
        raise
    except BaseException:
        place.remove_own_folder(path)
        _remove_empty(made)
        raise
    else:
        place.remove_own_folder(path)
    finally:
        lock.release()


def drop_leftovers(out: Path) -> None:
    """Remove the work folder that an interrupted redo of a finished run left beside it."""
    path = place.beside(out, "work")
    if not place.is_own_folder(path):
        return
    with suppress(OutputError), working(out, ""):  # another process may be at work there
        pass


def _keep_whole_files(path: Path) -> None:
    kept = {note.with_suffix("") for note in path.glob("*.done")}
    for file in path.iterdir():
        if file.is_dir() or file.name in ("lock", marks.LIST):
            continue
        if file not in kept and file.suffix != ".done":
            file.unlink(missing_ok=True)
    if not kept:
        place.remove_own_folder(path)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def publish(
    work: WorkFolder, out: Path, names: list[str], facts: Mapping[str, Any], *, force: bool = False
) -> dict[str, Any]:
    """Move `names` from the work folder into `out`, the manifest last; returns it.

    Files of the run that was there go. force: those too that were changed, where new ones replace
    them. OutputError, and nothing is moved, if anything else would be lost.
    """
    document = described(work, names, facts)
    stale = set(_listed(out)) - set(names)
    _move(work, out, names, document, drop=stale, force=force)
    return document


def described(work: WorkFolder, names: Sequence[str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest of a run of `facts` and the stage files `names` will be read as, but for
    its seal."""
    facts = {"format": FORMAT, "run_key": work.key, **facts, "files": _entries(work, names)}
    read: dict[str, Any] = loads(json.dumps(facts).encode(), dict)
    return read


def extend(
    work: WorkFolder, out: Path, names: list[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Add finished stage files `names` and `facts` to a finished run; returns the new manifest.

    The old manifest stays in force until the new one replaces it.
    """
    document = load_document(out)
    document.pop("seal", None)
    document["files"] = {**document["files"], **_entries(work, names)}
    document |= facts
    _move(work, out, names, document)
    return document


def _entries(work: WorkFolder, names: Sequence[str]) -> dict[str, Any]:
    paths = {name: work.path / name for name in sorted(names)}
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in paths.items()
    }


def _move(
    work: WorkFolder, out: Path, names: list[str], document: Mapping[str, Any], **how: Any
) -> None:
    with output_errors(out):
        (work.path / MANIFEST).write_bytes(sealed(document))
        out.mkdir(parents=True, exist_ok=True)
        place.move(work.path, out, [*names, MANIFEST], **how)


def refuse_loss(out: Path, names: Iterable[str], *, force: bool = False) -> None:
    """OutputError if a run that writes `names` into `out` would lose what is not a run's, or
    without `force` what was changed in a run."""
    manifest = place.plain(out) / MANIFEST
    if os.path.lexists(manifest) and not marks.is_ours(manifest, {}):
        raise OutputError(
            f"{manifest} carries no mark of atm-export, or was changed: nothing tells a run's "
            "files from yours; move the folder away, or choose another --out"
        )
    place.refuse_loss(out, sorted({*names, *_listed(out)}), force=force)


def finished_document(out: Path) -> dict[str, Any] | None:
    """What the manifest of a finished run holds, without its seal, or None."""
    try:
        document = load_document(out)
    except RunFolderError:
        return None
    document.pop("seal")
    return document


def broken_files(out: Path, document: Mapping[str, Any]) -> list[str]:
    """Files of a manifest that are missing or whose bytes have changed."""
    files = document.get("files", {})
    return [
        name
        for name, facts in files.items()
        if not (out / name).is_file() or sha256(out / name) != facts["sha256"]
    ]


def _listed(out: Path) -> list[str]:
    document = finished_document(out) or {}
    return [name for name in document.get("files", {}) if Path(name).name == name]


def versions() -> dict[str, str]:
    """Versions of the packages that shape an artifact."""
    found = {name: version_of(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version}


def version_of(package: str) -> str:
    """Its version, or that of its form for GPUs; empty where it is not installed."""
    for name in (package, f"{package}-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def run_key(parts: Mapping[str, Any]) -> str:
    """One hash over everything that decides what a run makes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
