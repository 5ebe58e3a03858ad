"""The run folder: whole files or none, one writer at a time, hashes of everything.

Stages are written to `.<name>.work` beside the folder and moved in at the end, the manifest last:
a folder with a manifest that verifies is a finished run. An interrupted run leaves whole stage
files in the work folder, and the same command goes on from there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from atm_export.errors import OutputError, RunFolderError
from atm_export.runfolder import FORMAT, MANIFEST, load_manifest, sealed, sha256

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

    def write(self, name: str, data: bytes) -> Path:
        """Write a stage file, and then the note that it is whole."""
        with output_errors(self.path / name):
            part = self.path / f"{name}.part"
            part.write_bytes(data)
            part.replace(self.path / name)
            (self.path / f"{name}.done").write_text(
                f"{self.key} {hashlib.sha256(data).hexdigest()}"
            )
        return self.path / name


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn failures to write into one OutputError that says how to fix them."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(
                f"disk full while writing {path}; free some space and run again"
            ) from error
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose another --out"
        ) from error


@contextmanager
def working(out: Path, key: str) -> Iterator[WorkFolder]:
    """The locked work folder of `out`; removed unless the run is interrupted."""
    path = out.parent / f".{out.name}.work"
    made: list[Path] = []
    with output_errors(out):
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out} is a file; choose another --out")
        made = [p for p in (out.parent, *out.parent.parents) if not p.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            _remove_empty(made)
            raise
    lock = _only_writer(path, out)
    try:
        yield WorkFolder(path, key)
    except KeyboardInterrupt:
        _keep_whole_files(path)
        raise
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        _remove_empty(made)
        raise
    else:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        lock.release()


def _only_writer(path: Path, out: Path) -> FileLock:
    lock = FileLock(path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"another run is writing to {out}; wait for it or choose another --out"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}; choose another --out") from error
    return lock


def _keep_whole_files(path: Path) -> None:
    kept = {note.with_suffix("") for note in path.glob("*.done")}
    for file in path.iterdir():
        if file not in kept and file.suffix != ".done" and file.name != "lock":
            file.unlink(missing_ok=True)
    if not kept:
        shutil.rmtree(path, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def publish(
    work: WorkFolder, out: Path, names: list[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Move `names` from the work folder into `out`, then write the manifest; returns it."""
    files = {
        name: {"bytes": (work.path / name).stat().st_size, "sha256": sha256(work.path / name)}
        for name in sorted(names)
    }
    manifest = {"format": FORMAT, "run_key": work.key, **facts, "files": files}
    with output_errors(out):
        part = work.path / f"{MANIFEST}.part"
        part.write_bytes(sealed(manifest))
        out.mkdir(parents=True, exist_ok=True)
        stale = set(_listed(out)) - set(names)
        (out / MANIFEST).unlink(missing_ok=True)
        for name in names:
            (work.path / name).replace(out / name)
        for name in stale:
            (out / name).unlink(missing_ok=True)
        part.replace(out / MANIFEST)
    return manifest


def extend(
    work: WorkFolder, out: Path, names: list[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Add finished stage files `names` and `facts` to a finished run; returns the new manifest.

    The old manifest stays in force until the new one replaces it.
    """
    manifest = load_manifest(out)
    manifest.pop("seal", None)
    manifest["files"] = dict(manifest["files"])
    with output_errors(out):
        for name in names:
            file = work.path / name
            entry = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            file.replace(out / name)
            manifest["files"][name] = entry
        manifest |= facts
        part = work.path / f"{MANIFEST}.part"
        part.write_bytes(sealed(manifest))
        part.replace(out / MANIFEST)
    return manifest


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a finished run, without its seal, or None."""
    try:
        manifest = load_manifest(out)
    except RunFolderError:
        return None
    manifest.pop("seal")
    return manifest


def broken_files(out: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files of the manifest that are missing or whose bytes have changed."""
    files = manifest.get("files", {})
    return [
        name
        for name, facts in files.items()
        if not (out / name).is_file() or sha256(out / name) != facts["sha256"]
    ]


def _listed(out: Path) -> list[str]:
    manifest = read_manifest(out) or {}
    return [name for name in manifest.get("files", {}) if Path(name).name == name]


def versions() -> dict[str, str]:
    """Versions of the packages that shape an artifact."""
    found = {}
    for name in PACKAGES:
        for candidate in (name, f"{name}-gpu"):
            try:
                found[name] = metadata.version(candidate)
                break
            except metadata.PackageNotFoundError:
                continue
    return found


def run_key(parts: Mapping[str, Any]) -> str:
    """One hash over everything that decides what a run makes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
