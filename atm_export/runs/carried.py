"""A run folder that travels as bytes to a machine that shares no disk with this one.

Nothing here imports more than NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from atm_export.errors import AtmExportError
from atm_export.runs.reading import MANIFEST, Run, read_checked
from atm_export.runs.writing import versions


def packed(run: Run) -> Iterator[tuple[str, bytes]]:
    """Every file of the run by name, hashed as it was read, and its manifest, which the seal and
    `open_run` check where it is unpacked."""
    yield MANIFEST, (run.folder / MANIFEST).read_bytes()
    for name in sorted(run.manifest.files):
        yield name, read_checked(run, name)


@contextmanager
def unpacked(files: Mapping[str, bytes], folder: str) -> Iterator[Path]:
    """A folder that holds the files while the context lasts, still to be checked by `open_run`.
    Errors of ours name the `folder` that the user knows in its place."""
    with TemporaryDirectory(prefix="atm-export-") as there:
        for name, data in files.items():
            (Path(there) / name).write_bytes(data)
        try:
            yield Path(there)
        except AtmExportError as error:
            raise type(error)(str(error).replace(there, folder)) from error


def require_versions(wanted: Mapping[str, str]) -> None:
    """AtmExportError unless this machine has the versions of another one."""
    here = versions()
    for name in sorted({*wanted, *here}):
        if here.get(name) != wanted.get(name):
            raise AtmExportError(
                f"a node of the cluster has {name} {here.get(name, 'not at all')}, this machine "
                f"{wanted.get(name, 'not at all')}; install the same on all"
            )
