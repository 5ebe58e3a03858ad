"""The one door to files and folders outside: nothing that may be a user's is lost behind it.

A file is ours where it carries our mark (`marks`). A folder is ours where all that it holds does,
or where its list says that whatever lies in it is ours (work folders). What carries no mark, or was
changed since, stays; what goes, goes only after its successor is whole.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from atm_export.errors import ConfigError, OutputError
from atm_export.marks import LIST, Marks, is_ours, marks, matches, read_list
from atm_export.runs.reading import MANIFEST
from atm_export.runs.seal import is_sealed, sealed, sha256

OLD = "old"  # in a work folder: what a move is replacing
OLD_FOLDER = "old-folder"  # the same for a whole folder
REMEDY = "choose another --out"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@contextmanager
def output_errors(path: Path, remedy: str = REMEDY) -> Iterator[None]:
    """Turn failures to write into one OutputError that says how to fix them."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(
                f"disk full while writing {path}; free some space and run again"
            ) from error
        raise OutputError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def plain_name(text: str, what: str) -> str:
    """`text` if it is a name and never a path; ConfigError if not."""
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"{what} {text!r}: give up to 128 letters (a-z), digits, '_', '-' and '.', "
            "beginning with a letter, a digit or '_'"
        )
    return text


def target(folder: Path, remedy: str = REMEDY) -> Path:
    """Where a folder to write into really is: links followed, `.` and `..` gone.

    OutputError for a link that leads nowhere, the root, or a file at or above it.
    """
    try:
        real = folder.resolve()
        above = next(path for path in (real, *real.parents) if os.path.lexists(path))
        is_folder = above.is_dir()
        dangling = [p for p in (folder, *folder.parents) if p.is_symlink() and not p.exists()]
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, names too long
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {folder}: {why}; {remedy}") from error
    if not is_folder:
        raise OutputError(f"{folder}: {above} is a file; {remedy}")
    if dangling:
        raise OutputError(f"{dangling[0]} is a link that leads nowhere; {remedy}")
    if real == real.parent:
        raise OutputError(f"{folder} is the root of the file system; {remedy}")
    return real


def plain(folder: Path) -> Path:
    """The same folder without `..`, which may lead through folders that are not there yet."""
    return target(folder) if ".." in folder.parts else folder


def beside(folder: Path, suffix: str) -> Path:
    """`.NAME.suffix` beside `folder`, for what is written before `folder` is touched."""
    real = target(folder)
    return real.parent / f".{real.name}.{suffix}"


def folder_marks(folder: Path) -> Marks:
    """The marks of the files right in `folder`, those of a move that was cut short included."""
    return marks(folder / MANIFEST, folder / LIST, beside(folder, "work") / LIST)


def refuse_loss(
    folder: Path, names: Iterable[str], *, force: bool | None = None, remedy: str = REMEDY
) -> None:
    """OutputError if writing `names` into `folder` would lose anything that is not ours.

    force: whether files that were ours and have changed may go too; None: there is no such option.
    """
    target(folder, remedy)
    folder = plain(folder)
    with output_errors(folder, remedy):
        known = folder_marks(folder)
        for name in names:
            path = folder / name
            if not os.path.lexists(path) or is_ours(path, known):
                continue
            regular = path.is_file() and not path.is_symlink()
            if name in known and regular:
                if force:
                    continue
                way = "move it away" if force is None else "give --force to replace it"
                raise OutputError(f"{path} was changed after it was written; {way}, or {remedy}")
            raise OutputError(
                f"{path} would be overwritten, and carries no mark of atm-export; "
                f"move it away, or {remedy}"
            )


def move(
    source: Path,
    folder: Path,
    names: Iterable[str],
    *,
    drop: Iterable[str] = (),
    force: bool = False,
) -> None:
    """Move files from the work folder `source` into `folder`, in this order: all or none.

    What they replace lies in `source`/old meanwhile. drop: names that go, where they are ours.
    Raises OutputError, as refuse_loss does, and OSError.
    """
    names = list(names)
    refuse_loss(folder, names, force=force)
    known = folder_marks(folder)
    _mark_own(source, {name: {"sha256": sha256(source / name)} for name in names})
    (source / OLD).mkdir()
    try:
        for name in names:
            if (folder / name).exists():
                _keep(folder / name, source / OLD / name)
        for name in (name for name in drop if is_ours(folder / name, known)):
            (folder / name).replace(source / OLD / name)
        for name in names:
            (source / name).replace(folder / name)
    except BaseException:
        restore(source, folder)
        raise
    restore(source, folder)


def restore(source: Path, folder: Path) -> None:
    """End a move from `source`: undone if it was cut short, else what it replaced goes."""
    old, moved = source / OLD, marks(source / LIST)
    if not old.is_dir():
        return
    if not all(matches(folder / name, hashes) for name, hashes in moved.items()):
        for path in sorted(old.iterdir()):
            place = folder / path.name
            if not os.path.lexists(place) or is_ours(place, folder_marks(folder)):
                path.replace(place)
                path.unlink(missing_ok=True)  # rename leaves two names of one file as they are
                moved = {name: hashes for name, hashes in moved.items() if name != path.name}
        listed = marks(folder / MANIFEST)
        for name in (name for name in moved if name not in listed):
            if matches(folder / name, moved[name]):
                (folder / name).unlink()
        old.rmdir()
    else:
        shutil.rmtree(old)
    _mark_own(source, {})


def put_folder(new: Path, folder: Path, remedy: str = REMEDY) -> None:
    """Put the folder `new` in the place of `folder`, which must be ours if it is there.

    What `new` holds is listed in it first; what it replaces lies beside `new` meanwhile, and is put
    back by the next call if this one is cut short.
    """
    old = new.with_name(OLD_FOLDER)
    with output_errors(folder, remedy):
        if old.exists() and not os.path.lexists(folder):
            old.rename(folder)
        refuse_folder_loss(folder, remedy)
        shutil.rmtree(old, ignore_errors=True)
        inside = {name: {"sha256": sha256(new / name)} for name in _inside(new)}
        (new / LIST).write_bytes(sealed({"files": inside}))
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def refuse_folder_loss(folder: Path, remedy: str = REMEDY) -> None:
    """OutputError unless nothing is at `folder`, or nothing in it, or all of it is ours and
    unchanged."""
    if not os.path.lexists(folder):
        return
    with output_errors(folder, remedy):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            return
        known = marks(folder / LIST)
        strange = folder if folder.is_symlink() or not (folder / LIST).is_file() else None
        for name in _inside(folder) if strange is None else []:
            path = folder / name
            listed = name in known and not path.is_symlink() and path.is_file()
            if name != LIST and not (listed and sha256(path) in known[name]):
                strange = path
                break
        if strange is None and not is_sealed((folder / LIST).read_bytes()):
            strange = folder / LIST
    if strange is not None:
        raise OutputError(
            f"{folder} would be replaced, and {strange} carries no mark of atm-export or was "
            f"changed; move it away, or {remedy}"
        )


def own_folder(folder: Path, remedy: str = REMEDY) -> None:
    """Make a folder of which all is ours, or find it; OutputError if there is another thing."""
    if not os.path.lexists(folder):
        new = folder.with_name(f".{secrets.token_hex(4)}.new")
        new.mkdir(parents=True)
        try:
            _mark_own(new, {})
            new.rename(folder)
        except OSError as error:
            shutil.rmtree(new)
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # made by another process
                raise
    refuse_other_folder(folder, remedy)


def refuse_other_folder(folder: Path, remedy: str = REMEDY) -> None:
    """OutputError if there is anything but a folder that `own_folder` made."""
    if os.path.lexists(folder) and not is_own_folder(folder):
        raise OutputError(f"{folder} carries no mark of atm-export; move it away, or {remedy}")


def is_own_folder(folder: Path) -> bool:
    """Whether `own_folder` made it."""
    return not folder.is_symlink() and read_list(folder / LIST).get("all") is True


def remove_own_folder(folder: Path) -> None:
    """Remove a folder that `own_folder` made, unless it holds what could not be put back."""
    if is_own_folder(folder) and not any((folder / name).exists() for name in (OLD, OLD_FOLDER)):
        shutil.rmtree(folder, ignore_errors=True)


def lock(path: Path, busy: str, timeout: float = 0) -> FileLock:
    """Hold the lock file at `path`; OutputError(`busy`) if another process does.

    A file with anything in it is no lock file of ours: some locks truncate theirs.
    """
    if path.is_symlink() or (path.exists() and (not path.is_file() or path.stat().st_size)):
        raise OutputError(f"{path} carries no mark of atm-export; move it away")
    held = FileLock(path)
    try:
        held.acquire(timeout=timeout)
    except Timeout as error:
        raise OutputError(busy) from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}; {REMEDY}") from error
    return held


def _mark_own(folder: Path, moving: Mapping[str, Mapping[str, str]]) -> None:
    write_whole(folder / LIST, sealed({"all": True, "files": dict(moving)}))


def _inside(folder: Path) -> list[str]:
    """Every file and link in a folder and its folders, by its path from there."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in one step; whether it may be replaced is asked before."""
    part = path.with_name(f".{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _keep(path: Path, old: Path) -> None:
    """A second name for a file, so that it can be replaced in one step and still be put back."""
    try:
        os.link(path, old)
    except OSError:  # a file system without hard links
        shutil.copy2(path, old)
