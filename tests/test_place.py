"""The one door to files outside: marks, moves that are cut short at any step, names, places."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atm_export import loose_files, marks, place
from atm_export.errors import ConfigError, OutputError
from atm_export.runs.reading import MANIFEST
from atm_export.runs.seal import sealed
from tests.snapshots import snapshot

NAMES = ["a.txt", "new.txt", MANIFEST]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture
def moving(tmp_path: Path) -> tuple[Path, Path, dict[str, bytes], dict[str, bytes]]:
    """A work folder, a run folder with a file of the user's, what it holds, what it shall hold."""
    out, work = tmp_path / "run", tmp_path / ".run.work"
    place.own_folder(work)
    out.mkdir()
    old = {"a.txt": b"old a", "stale.txt": b"stale"}
    for name, data in old.items():
        (out / name).write_bytes(data)
    facts = {name: {"sha256": place.sha256(out / name)} for name in old}
    (out / MANIFEST).write_bytes(sealed({"files": facts}))
    (out / "mine.txt").write_bytes(b"the user's")
    before = contents(out)
    new = {"a.txt": b"new a", "new.txt": b"new"}
    for name, data in new.items():
        (work / name).write_bytes(data)
    facts = {name: {"sha256": place.sha256(work / name)} for name in new}
    (work / MANIFEST).write_bytes(sealed({"files": facts}))
    after = new | {MANIFEST: (work / MANIFEST).read_bytes(), "mine.txt": b"the user's"}
    return work, out, before, after


class Killed(BaseException):
    """The process is gone: nothing is tidied."""


def cut(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """The `step`-th change to the file system fails."""
    done = 0

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == step:
                raise error
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(Path, "replace", failing(Path.replace))
    monkeypatch.setattr(Path, "rename", failing(Path.rename))
    monkeypatch.setattr(place, "_keep", failing(place._keep))
    monkeypatch.setattr(shutil, "rmtree", failing(shutil.rmtree))


def test_a_move_replaces_all_and_drops_what_is_stale(moving: Any) -> None:
    work, out, _, after = moving
    place.move(work, out, NAMES, drop=["stale.txt"])
    assert contents(out) == after
    assert sorted(p.name for p in work.iterdir()) == [marks.LIST]


@pytest.mark.parametrize("step", range(2, 8))
@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_move_that_fails_is_undone(
    moving: Any, step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out, before, _ = moving
    cut(monkeypatch, step, error)
    with pytest.raises(type(error)):
        place.move(work, out, NAMES, drop=["stale.txt"])
    monkeypatch.undo()
    assert contents(out) == before


@pytest.mark.parametrize("step", range(2, 9))
def test_a_move_that_was_killed_is_ended_by_the_next_run(
    moving: Any, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out, before, after = moving
    cut(monkeypatch, step, Killed())
    real = place.restore
    whole = step == 8  # all was in place, what it replaced was not away yet
    monkeypatch.setattr(place, "restore", real if whole else lambda *_: None)
    with pytest.raises(Killed):
        place.move(work, out, NAMES, drop=["stale.txt"])
    monkeypatch.undo()
    assert marks.is_ours(out / "a.txt", place.folder_marks(out))
    place.restore(work, out)
    assert contents(out) == (after if whole else before)
    assert not (work / place.OLD).exists()


def test_a_first_move_that_was_killed_leaves_files_that_the_next_run_may_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "run", tmp_path / ".run.work"
    place.own_folder(work)
    out.mkdir()
    for name in NAMES:
        (work / name).write_bytes(name.encode())
    cut(monkeypatch, 3, Killed())
    monkeypatch.setattr(place, "restore", lambda *_: None)
    with pytest.raises(Killed):
        place.move(work, out, NAMES)
    monkeypatch.undo()
    assert list(contents(out)) == ["a.txt"]
    place.refuse_loss(out, NAMES)
    place.restore(work, out)
    assert not contents(out)


def model_folder(path: Path, text: str) -> Path:
    (path / "1").mkdir(parents=True)
    (path / "1" / "model").write_text(text)
    (path / "config").write_text(text)
    return path


def test_a_folder_of_ours_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("one", "two"):
        place.put_folder(model_folder(tmp_path / "work" / "new", text), target)
    assert (target / "1" / "model").read_text() == "two"
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_stays_until_its_successor_is_there(
    step: int, killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, work = tmp_path / "model", tmp_path / "work"
    place.put_folder(model_folder(work / "new", "one"), target)
    before = snapshot(target)
    new = model_folder(work / "new", "two")
    cut(monkeypatch, step, OSError("no"))
    if killed:  # the way back is cut too
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda self, to: None if self.name == "old-folder" else rename(self, to)
        )
    with pytest.raises(OutputError):
        place.put_folder(new, target)
    monkeypatch.undo()
    if not killed:
        assert snapshot(target) == before
    place.put_folder(new, target)
    assert (target / "config").read_text() == "two"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config").write_text("edited"),
        lambda folder: (folder / "2").mkdir() or (folder / "2" / "model").write_text("mine"),
        lambda folder: (folder / "1" / "link").symlink_to("/nowhere"),
        lambda folder: (folder / marks.LIST).unlink(),
        lambda folder: (folder / marks.LIST).write_text("{}"),
    ],
    ids=["edited", "added", "link", "no list", "list edited"],
)
def test_a_folder_that_was_changed_is_not_replaced(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    target = tmp_path / "model"
    place.put_folder(model_folder(tmp_path / "work" / "new", "one"), target)
    change(target)
    before = snapshot(target)
    with pytest.raises(OutputError, match="move it away"):
        place.put_folder(model_folder(tmp_path / "work" / "new", "two"), target)
    assert snapshot(target) == before


def test_loose_files_are_replaced_while_they_are_as_written(tmp_path: Path) -> None:
    loose_files.put_files(tmp_path, {"a": b"1", "b": b"1"})
    loose_files.put_files(tmp_path, {"a": b"2"})
    assert contents(tmp_path) | {marks.LIST: b""} == {"a": b"2", "b": b"1", marks.LIST: b""}
    (tmp_path / "a").write_bytes(b"edited")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="was changed after it was written"):
        loose_files.put_files(tmp_path, {"b": b"3", "a": b"3"})
    assert snapshot(tmp_path) == before
    loose_files.put_files(tmp_path, {"a": b"edited"})  # the same bytes: nothing to do
    assert snapshot(tmp_path) == before


def test_loose_files_cut_short_are_still_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose_files.put_files(tmp_path, {"a": b"1", "b": b"1"})
    cut(monkeypatch, 3, Killed())  # the list and `a` are written, `b` is not
    with pytest.raises(Killed):
        loose_files.put_files(tmp_path, {"a": b"2", "b": b"2"})
    monkeypatch.undo()
    loose_files.put_files(tmp_path, {"a": b"3", "b": b"3"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"3"
    assert sorted(p.name for p in tmp_path.iterdir()) == [marks.LIST, "a", "b"]


@pytest.mark.parametrize("text", ["{}", "[1]", "[" * 100_000, "\0", '{"seal": "' + "0" * 64 + '"}'])
def test_a_list_that_is_not_sealed_marks_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    (tmp_path / marks.LIST).write_text(text)
    before = snapshot(tmp_path)
    with pytest.raises(OutputError):
        loose_files.put_files(tmp_path, {"a": b"2"})
    with pytest.raises(OutputError):
        loose_files.put_files(tmp_path, {"b": b"2"})  # its list would replace the other
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a/b", "../a", "/a", "a\\b", 'a"', "a\nb", "a ", "-a", ".a", "é", "a" * 129],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        place.plain_name(text, "--name")


@pytest.mark.parametrize("text", ["a", "_", "deit_s-a2-3.23", "7", "a" * 128])
def test_what_is_a_name(text: str) -> None:
    assert place.plain_name(text, "--name") == text


def test_a_folder_that_is_not_ours_is_neither_used_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("mine")
    (tmp_path / "link").symlink_to("theirs")
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    for name in ("theirs", "link", "file"):
        with pytest.raises(OutputError, match="no mark"):
            place.own_folder(tmp_path / name)
        place.remove_own_folder(tmp_path / name)
    assert snapshot(tmp_path) == before


def test_a_file_with_anything_in_it_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "poetry.lock").write_text("precious")
    (tmp_path / "link.lock").symlink_to("absent")
    for name in ("poetry.lock", "link.lock"):
        with pytest.raises(OutputError, match="no mark"):
            place.lock(tmp_path / name, "busy")
    assert (tmp_path / "poetry.lock").read_text() == "precious"
    assert not (tmp_path / "absent").exists()
