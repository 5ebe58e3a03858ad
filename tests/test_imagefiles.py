"""Files from outside: links, loops, pipes, and names that are no UTF-8."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from atm_export.cli import main
from atm_export.errors import DataError
from atm_export.imagefiles import printable, walk
from atm_export.measure.data.images import load_images
from atm_export.measure.data.samples import open_samples
from atm_export.preprocess import list_images, read_image
from tests.data_sets import HOW, by_shade, save, unreadable


def test_class_folders_behind_links_count(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png", 1)
    save(tmp_path / "val" / "n01440764" / "b.png", 2)
    (tmp_path / "val" / "n15075141").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "val" / "n01440764" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert by_shade(open_samples(str(tmp_path / "val"), 1000)) == {2: (0,), 1: (999,)}
    assert len(open_samples(str(tmp_path / "val"), 1000)) == 3
    assert len(list_images(tmp_path / "val")) == 3


@pytest.mark.parametrize(("link", "target"), [("a/loop", "."), ("b", "a"), ("a/up", "..")])
def test_a_folder_reached_twice_is_refused(tmp_path: Path, link: str, target: str) -> None:
    save(tmp_path / "a" / "a.png")
    (tmp_path / link).symlink_to(target, target_is_directory=True)
    for look in (list_images, lambda folder: open_samples(str(folder), 1000)):
        with pytest.raises(DataError, match=r"are one folder, by a link"):
            look(tmp_path)


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a" / "a.png")
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"cannot list .*a: Permission denied"):
        list(walk(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_dangling_links_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "n01440764"
    save(folder / "a.PNG", 1)
    save(folder / "folder.png" / "n15075141" / "b.png", 2)
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "._a.PNG").write_bytes(b"attributes of macOS")
    (folder / "notes.txt").write_text("no image")
    found = open_samples(str(tmp_path), 1000)
    assert unreadable(found) == {
        "n01440764/pipe.png": "is no regular file",
        "n01440764/gone.jpg": "No such file or directory",
    }
    assert len(found) == 4 and found.others == {".txt": 1, "._": 1}
    with pytest.raises(DataError, match=r"pipe\.png"):
        read_image(folder / "pipe.png", HOW)
    os.mkfifo(tmp_path / "n01440764" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg|pipe\.png"):
        load_images(str(tmp_path), HOW)


def test_printable_names_are_unambiguous() -> None:
    names = [
        b"plain.png",
        b"caf\xe9.png",
        b"caf\xc3\xa9.png",
        b"a\nb.png",
        b"\\xe9.png",
        b"\xe9.png",
    ]
    shown = [printable(name.decode("utf-8", "surrogateescape")) for name in names]
    assert shown == [
        "plain.png",
        "caf\\xe9.png",
        "café.png",
        "a\\x0ab.png",
        "\\\\xe9.png",
        "\\xe9.png",
    ]
    assert [written_back(text) for text in shown] == names


def written_back(text: str) -> bytes:
    """The bytes of the name that `printable` wrote as `text`."""
    parts = re.split(r"(\\\\|\\x[0-9a-f]{2})", text)
    return b"".join(
        part.encode() if i % 2 == 0 else b"\\" if part == "\\\\" else bytes.fromhex(part[2:])
        for i, part in enumerate(parts)
    )


def test_names_of_the_images_of_a_run_can_be_written(tmp_path: Path) -> None:
    save(tmp_path / "images" / os.fsdecode(b"caf\xe9.png"))
    assert load_images(str(tmp_path / "images"), HOW).names == ("caf\\xe9.png",)


def test_paths_that_the_manifest_cannot_state_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    save(odd / "a.png")
    for option in ("--images", "--calibrate", "--weights"):
        given = odd / "a.png" if option == "--weights" else odd
        arguments = ["--merge", "frozen", "--out", str(tmp_path / "run")]
        assert main(["demo", option, str(given), *arguments]) == 2
        error = capsys.readouterr().err
        assert "the path is no UTF-8; rename" in error and len(error.splitlines()) == 1
    assert main(["demo", "--images", ""]) == 2
    assert "--images is empty" in capsys.readouterr().err
    assert main(["demo", "--images", str(tmp_path / "absent")]) == 9
    assert "no such folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [odd]
