"""An interrupted evaluation goes on with the images it began with, and with no others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atm_export.cli import main
from atm_export.errors import OutputError
from atm_export.measure.accuracy.batches import Options, _count
from atm_export.measure.accuracy.evaluation import Evaluation, evaluate_run
from atm_export.measure.accuracy.journal import _line, journal
from atm_export.measure.accuracy.place import Place
from atm_export.measure.accuracy.resume import Counted
from atm_export.runs.reading import open_run
from atm_export.tasks.classify import Classify
from tests.data_sets import png, tar_of

OPTIONS = Options(batch=8, workers=0)
ENTRY = {
    "batch": 0,
    "samples": "a" * 64,
    "images": [0, 1],
    "unreadable": [["k.png", "torn"]],
    "answers": [[1, 2, 3, 4, 5]] * 2,
    "gmacs": [0.5, 0.25],
    "tokens": [[9, 8], [9, 7]],
    "plain": [[1, 2, 3, 4, 5]] * 2,
}


def stopped_before(monkeypatch: pytest.MonkeyPatch, batches: int) -> list[int]:
    """The evaluation is interrupted once that many batches are counted; grows with every one."""
    counted: list[int] = []

    def count(*arguments: Any) -> dict[str, Any]:
        if len(counted) == batches:
            counted.append(-1)
            raise KeyboardInterrupt
        counted.append(1)
        return _count(*arguments)

    monkeypatch.setattr("atm_export.measure.accuracy.batches._count", count)
    return counted


def answers(evaluation: Evaluation) -> dict[str, Any]:
    names = ("top1", "top5", "agreement", "gflops", "tokens", "data", "unreadable")
    return {**{name: evaluation.facts[name] for name in names}, "csv": evaluation.predictions}


def change_file(images: Path) -> None:
    """Other bytes of the same number, and the same time, under one name of the second batch."""
    file = sorted(images.rglob("*.png"))[9]
    data, time = bytearray(file.read_bytes()), file.stat().st_mtime_ns
    data[-20] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(time, time))


def tar_of_folder(images: Path, swap: bool = False) -> Path:
    """All images of a folder as one tar; swapped: two images of one class, under the same names,
    take each other's place."""
    files = sorted(images.rglob("*.png"))
    data = {file.relative_to(images).as_posix(): file.read_bytes() for file in files}
    if swap:
        first, second = list(data)[:2]
        data[first], data[second] = data[second], data[first]
    return tar_of(images.parent / "val.tar", data)


def test_other_bytes_are_counted_again(
    run_copy: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Path(shutil.copytree(digits, tmp_path / "images"))
    run, place = open_run(run_copy), Place(str(images))
    counted = stopped_before(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, place, OPTIONS)
    change_file(images)
    resumed = evaluate_run(run, place, OPTIONS)
    assert len(counted) == 4 + 3  # the second batch again, and the two that were left
    resumed.journal.unlink()
    monkeypatch.undo()
    assert answers(resumed) == answers(evaluate_run(run, place, OPTIONS))


def test_a_tar_of_the_same_names_does_not_go_on_with_the_other(
    run_copy: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Path(shutil.copytree(digits, tmp_path / "images"))
    run, place = open_run(run_copy), Place(str(tar_of_folder(images)))
    counted = stopped_before(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, place, OPTIONS)
    tar_of_folder(images, swap=True)
    resumed = evaluate_run(run, place, OPTIONS)
    assert len(counted) == 5 + 2  # the first batch again, and the last
    resumed.journal.unlink()
    monkeypatch.undo()
    assert answers(resumed) == answers(evaluate_run(run, place, OPTIONS))
    by_files = evaluate_run(run, Place(str(images)), OPTIONS)
    assert by_files.facts["data"]["sha256"] != resumed.facts["data"]["sha256"]


def replaced(lines: list[bytes]) -> bytes:
    return b"\n".join(lines)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: replaced([lines[0], lines[1], b"\xff\xfe\x00 broken", lines[2], b""]),
        lambda lines: replaced([lines[0], lines[1], lines[2][:-1] + b"\xff", b""]),
        lambda lines: replaced([lines[0], lines[1], b"", lines[2]]),
        lambda lines: replaced([lines[0], lines[1], signed(b"[" * 100_000), lines[2]]),
        lambda lines: replaced([lines[0], lines[1], signed(b"[1]"), lines[2]]),
        lambda lines: replaced([lines[0], lines[1], signed(b"\xff"), lines[2]]),
    ],
)
def test_what_follows_broken_bytes_is_counted_again(
    tmp_path: Path, spoil: Callable[[list[bytes]], bytes]
) -> None:
    path = tmp_path / "journal.jsonl"
    with journal(path, "one") as book:
        book.add({"batch": 0, "n": 1})
        book.add({"batch": 1, "n": 2})
    path.write_bytes(spoil(path.read_bytes().split(b"\n")))
    with journal(path, "one") as book:
        assert list(book.entries) == [0]


def signed(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text


@pytest.mark.parametrize("data", [b"\xff\xfe", b"my notes\n", b"\n", signed(b'{"n": 1}')])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(data)
    with pytest.raises(OutputError, match="is no journal"), journal(path, "one"):
        pass
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_or_pipe_in_the_place_of_a_journal_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.mkdir()
    with pytest.raises(OutputError, match="is no regular file"), journal(path, "one"):
        pass
    (tmp_path / "other.lock").mkdir()
    with (
        pytest.raises(OutputError, match="no mark of atm-export"),
        journal(tmp_path / "other.jsonl", "one"),
    ):
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"images": [0, 0]},
        {"images": [0, 9]},
        {"images": [0]},
        {"unreadable": []},
        {"answers": [[1, 2, 3, 4, 5]]},
        {"answers": [[], []]},
        {"gmacs": [0.5, float("nan")]},
        {"gmacs": ["0.5", "0.25"]},
        {"tokens": [[9], [9, 8]]},
        {"plain": None},
        {"more": 1},
        {"samples": None},
    ],
)
def test_entries_of_another_form_do_not_fit(change: dict[str, Any]) -> None:
    assert Counted.model_validate(ENTRY).fits(range(3), True, Classify.judge)
    try:
        fits = Counted.model_validate(ENTRY | change).fits(range(3), True, Classify.judge)
    except ValueError:
        fits = False
    assert not fits


def test_foreign_entries_of_a_journal_are_counted_again(
    run_copy: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place = open_run(run_copy), Place(str(digits))
    whole = evaluate_run(run, place, OPTIONS)
    lines = whole.journal.read_text().splitlines(keepends=True)
    strange = [ENTRY, {"batch": 1}, {**ENTRY, "batch": 99}, {**ENTRY, "batch": -1}]
    whole.journal.write_text("".join([lines[0], *map(_line, strange), *lines[3:]]))
    counted = stopped_before(monkeypatch, 99)
    assert answers(evaluate_run(run, place, OPTIONS)) == answers(whole)
    assert len(counted) == 2


def test_names_that_are_no_utf8_end_in_files_and_not_in_a_traceback(
    run_copy: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(digits / "3", images / "3")
    first = sorted((images / "3").iterdir())[0]
    first.rename(images / "3" / os.fsdecode(b'a\xff"\n, b\\.png'))
    (images / "3" / os.fsdecode(b"\xfe.png")).write_bytes(b"no image")
    (images / "3" / "notes.txt").write_text("no image")
    arguments = ["evaluate", str(run_copy), "--imagenet", str(images), "--workers", "0"]
    assert main(arguments) == 0, capsys.readouterr().err
    name, bad = '3/a\\xff"\\x0a, b\\\\.png', "3/\\xfe.png"
    rows = (run_copy / "predictions-onnxruntime.csv").read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if row.startswith('"' + name.replace('"', '""') + '",3,')]
    facts = json.loads((run_copy / "evaluation-onnxruntime.json").read_text(encoding="utf-8"))
    assert [row["image"] for row in facts["unreadable"]] == [bad]
    assert facts["data"]["place"] == "caf\\xe9" and facts["data"]["other_files"] == {".txt": 1}
    printed = capsys.readouterr().out
    assert f"unreadable {bad}: {facts['unreadable'][0]['reason']}" in printed
    assert "files that are no images: 1 .txt" in printed


def test_a_torn_tar_is_one_line_of_the_command(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tar_of(tmp_path / "val.tar", {f"{i % 10}/{i}.png": png(i) for i in range(60)})
    path.write_bytes(path.read_bytes()[:40_000])
    assert main(["evaluate", str(finished_run), "--imagenet", str(path)]) == 9
    error = capsys.readouterr().err.splitlines()
    assert "val.tar is cut off or damaged at byte 39936, behind 39 files" in error[-1]


def test_class_order_is_an_option(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(1, 11):
        (tmp_path / "images" / f"class{i}").mkdir(parents=True)
        (tmp_path / "images" / f"class{i}" / "a.png").write_bytes(png(i))
    arguments = ["evaluate", str(finished_run), "--imagenet", str(tmp_path / "images")]
    assert main(arguments) == 9
    assert "--class-order name" in capsys.readouterr().err
    assert main([*arguments, "--class-order", "backwards"]) == 2


def test_codes_in_names_do_not_reach_the_terminal(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tar_of(tmp_path / "val.tar", {"\x1b[2Jcat/a.png": png(1)})
    assert main(["evaluate", str(finished_run), "--imagenet", str(path)]) == 9
    last = capsys.readouterr().err.splitlines()[-1]
    assert "\\x1b[2Jcat" in last and last.isprintable()
