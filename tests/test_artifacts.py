"""The run folder: whole or not at all, one writer, resumable."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from atm_export.errors import OutputError
from atm_export.runs.writing import (
    MANIFEST,
    broken_files,
    finished_document,
    publish,
    run_key,
    versions,
    working,
)


def test_publish_writes_files_and_a_manifest_that_verifies(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    with working(out, "key") as work:
        work.write("a.txt", b"one")
        work.write("b.txt", b"two")
        manifest = publish(work, out, ["a.txt", "b.txt"], {"status": "proven"})
    assert finished_document(out) == manifest
    assert manifest["run_key"] == "key" and manifest["files"]["a.txt"]["bytes"] == 3
    assert broken_files(out, manifest) == []
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "b.txt", MANIFEST]
    assert [path.name for path in out.parent.iterdir()] == ["run"]
    (out / "b.txt").write_bytes(b"twO")
    (out / "a.txt").unlink()
    assert broken_files(out, manifest) == ["a.txt", "b.txt"]


def test_publishing_again_removes_only_files_of_the_old_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with working(out, "1") as work:
        work.write("old.txt", b"old")
        publish(work, out, ["old.txt"], {})
    (out / "mine.txt").write_text("not of any run")
    with working(out, "2") as work:
        work.write("new.txt", b"new")
        publish(work, out, ["new.txt"], {})
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, "mine.txt", "new.txt"]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with working(out, "1") as work:
        work.write("a.txt", b"one")
        with pytest.raises(OutputError, match="another run"), working(out, "2"):
            pytest.fail("two runs write to one folder")
        assert work.finished("a.txt") is not None
        publish(work, out, ["a.txt"], {})
    assert finished_document(out) is not None


def test_an_interrupted_run_keeps_whole_stages_for_the_same_key(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), working(out, "same") as work:
        work.write("stage.bin", b"whole")
        (work.path / "half.part").write_bytes(b"ha")
        raise KeyboardInterrupt
    assert not out.exists()
    with working(out, "same") as work:
        stage = work.finished("stage.bin")
        assert stage is not None and stage.read_bytes() == b"whole"
        assert not (work.path / "half.part").exists()
        stage.write_bytes(b"changed")
        assert work.finished("stage.bin") is None
    assert not list(tmp_path.iterdir())


def test_a_stage_of_another_key_is_not_taken(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), working(out, "one") as work:
        work.write("stage.bin", b"whole")
        raise KeyboardInterrupt
    with working(out, "two") as work:
        assert work.finished("stage.bin") is None


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    with pytest.raises(ValueError, match="boom"), working(out, "key") as work:
        work.write("stage.bin", b"whole")
        raise ValueError("boom")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    out = tmp_path / "run"
    with pytest.raises(OutputError, match="disk full"), working(out, "key") as work:
        work.write("stage.bin", b"data")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match="choose another --out"), working(out, "key"):
            pytest.fail("a file was taken for a folder")


def test_a_damaged_manifest_is_none(tmp_path: Path) -> None:
    assert finished_document(tmp_path) is None
    (tmp_path / MANIFEST).write_text("{half")
    assert finished_document(tmp_path) is None


def test_keys_and_versions_are_stable() -> None:
    assert run_key({"a": 1, "b": 2}) == run_key({"b": 2, "a": 1})
    assert run_key({"a": 1}) != run_key({"a": 2})
    assert {"atm-export", "torch", "timm", "onnx", "onnxruntime"} <= versions().keys()
