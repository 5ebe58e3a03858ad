"""Tar archives: every image counted, named as unreadable, or the archive refused."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from atm_export.errors import DataError
from atm_export.measure.data.samples import open_samples
from tests.data_sets import SYNSETS, by_shade, png, tar_of, unreadable


def sixty(path: Path) -> bytes:
    """60 images in three synset folders; the archive's bytes."""
    members = {f"{SYNSETS[i % 3]}/{i:02d}.png": png(i) for i in range(60)}
    return tar_of(path, members).read_bytes()


def linked(path: Path, links: dict[str, tuple[bytes, str]], files: dict[str, bytes]) -> Path:
    """An archive of `files`, and links by name: type and target."""
    tar_of(path, files)
    with tarfile.open(path, "a") as archive:
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def refused(place: Path, says: str, classes: int = 1000) -> None:
    with pytest.raises(DataError, match=says) as caught:
        open_samples(str(place), classes)
    assert "\n" not in str(caught.value)


def test_a_tar_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "val.tar"
    whole = sixty(path)
    assert len(open_samples(str(path), 1000)) == 60
    end = len(whole.rstrip(b"\0"))
    blocks = -(-end // 512)
    for cut in (1, 500, 512, 513, len(whole) // 4, len(whole) // 2, end - 1, 512 * blocks):
        path.write_bytes(whole[:cut])
        refused(path, "cut off|cannot read")
    path.write_bytes(whole[: 512 * blocks + 512])  # one block of zeros is an end
    assert len(open_samples(str(path), 1000)) == 60


def test_a_tar_that_goes_on_behind_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "val.tar"
    path.write_bytes(sixty(path) + sixty(tmp_path / "more.tar"))
    refused(path, "goes on behind its end")


def test_a_header_broken_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "val.tar"
    data = bytearray(sixty(path))
    at = data.index(b"n01440764/31.png")
    data[at : at + 4] = b"zzzz"
    path.write_bytes(bytes(data))
    refused(path, r"damaged at byte \d+, behind 31 files")


def test_compressed_archives_are_refused_by_kind(tmp_path: Path) -> None:
    plain = sixty(tmp_path / "plain.tar")
    path = tmp_path / "in" / "val.tar"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(plain))
    refused(path, "is gzip, no plain tar archive; unpack it")
    refused(path.parent, "is gzip, no plain tar archive")
    for name in ("val.tar.gz", "val.zip"):
        folder = tmp_path / name.replace(".", "")
        folder.mkdir()
        (folder / name).write_bytes(gzip.compress(plain))
        refused(folder, rf"{name} is compressed or no tar archive; unpack it first")
        refused(folder / name, "is a file, but no .tar; unpack it")
        (folder / "0.tar").write_bytes(plain)
        refused(folder, rf"{name} is compressed")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("n01440764/a.png", png(1))
    refused(path, "is zip, no plain tar")


def test_one_key_with_two_images_loses_none(tmp_path: Path) -> None:
    members = {"k.png": png(1), "k.jpg": png(2), "k.cls": b"4", "m.PNG": png(3), "m.cls": b"5\n"}
    found = open_samples(str(tar_of(tmp_path / "val.tar", members)), 10)
    assert by_shade(found) == {1: (4,), 2: (4,), 3: (5,)}
    assert [found.name(i) for i in range(3)] == ["val.tar/k.png", "val.tar/k.jpg", "val.tar/m.PNG"]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"k.png": png(1), "k.cls": b"10"}, "k.cls: '10' is no class of a model of 10"),
        ({"k.png": png(1), "k.cls": b"-1"}, "'-1' is no class"),
        ({"k.png": png(1), "k.cls": b"1_0"}, "'1_0' is no class"),
        ({"k.png": png(1), "k.cls": b""}, "'' is no class"),
        ({"k.png": png(1), "k.cls": b"4" * 100}, "k.cls is no class but 100 bytes"),
        ({"k.png": png(1), "k.cls": b"4", "m.png": png(2)}, r"1 images \(val.tar/m.png"),
        ({"k.png": png(1), "k.cls": b"4", "m.cls": b"4"}, "m.cls has no image beside it"),
    ],
)
def test_cls_files_that_do_not_fit(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    refused(tar_of(tmp_path / "val.tar", members), says, classes=10)


def test_the_same_names_with_other_pixels_have_another_digest(tmp_path: Path) -> None:
    digests, listings = set(), set()
    for k in range(2):
        members = {f"{SYNSETS[0]}/{i}.png": png(i + k) for i in range(3)}
        found = open_samples(str(tar_of(tmp_path / str(k) / "val.tar", members)), 1000)
        digests.add(found.digest())
        listings.add(found.listing())
        assert found.digest([1, 2]) != found.digest()
    assert len(digests) == 2 and len(listings) == 1


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "val.tar", {"n01440764/a.png": png(1)})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("./n01440764/a.png")
        info.size = len(png(2))
        archive.addfile(info, io.BytesIO(png(2)))
    refused(path, "holds 'n01440764/a.png' twice")


def test_links_and_devices_in_a_tar(tmp_path: Path) -> None:
    files = {"n01440764/a.png": png(1), "n02099601/real.png": png(2)}
    links = {
        "n02099601/hard.png": (tarfile.LNKTYPE, "n01440764/a.png"),
        "n02099601/soft.png": (tarfile.SYMTYPE, "../n01440764/a.png"),
        "n02099601/twice.png": (tarfile.SYMTYPE, "soft.png"),
        "n02099601/gone.png": (tarfile.SYMTYPE, "/etc/passwd"),
        "n02099601/loop.png": (tarfile.SYMTYPE, "loop.png"),
        "n02099601/pipe.png": (tarfile.FIFOTYPE, ""),
    }
    found = open_samples(str(linked(tmp_path / "val.tar", links, files)), 1000)
    assert len(found) == 8 and found.right == ((0,),) + ((207,),) * 7
    reasons = unreadable(found)
    assert list(reasons) == [f"val.tar/n02099601/{n}.png" for n in ("gone", "loop", "pipe")]
    assert "/etc/passwd" in reasons["val.tar/n02099601/gone.png"]
    folder = {"n15075141": (tarfile.SYMTYPE, "n01440764")}
    refused(linked(tmp_path / "folder.tar", folder, files), r"'n15075141' is a link .*dereference")


def test_odd_names_stay_names(tmp_path: Path) -> None:
    deep = "x" * 120 + "/" + "y" * 130  # a PAX header
    members = {
        "/abs/n15075141/a.png": png(1),
        "../../n01440764/b.png": png(2),
        f"{deep}/n02099601/c.JPG": png(3),
        "n02099601/._d.png": b"attributes of macOS",
        "README": b"text",
    }
    found = open_samples(str(tar_of(tmp_path / "in" / "val.tar", members)), 1000)
    assert by_shade(found) == {1: (999,), 2: (0,), 3: (207,)}
    assert found.others == {"._": 1, "none": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_sparse_members_are_named(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "val.tar", {"n01440764/a.png": png(1), "n01440764/b.png": png(2)})
    data = bytearray(path.read_bytes())
    data[156:157] = tarfile.GNUTYPE_SPARSE  # the first header says: an old GNU sparse file
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(bytes(data))
    found = open_samples(str(path), 1000)
    assert list(unreadable(found)) == ["val.tar/n01440764/a.png"]
    assert "holes" in unreadable(found)["val.tar/n01440764/a.png"]


def test_archives_in_folders_below_and_with_large_suffixes(tmp_path: Path) -> None:
    tar_of(tmp_path / "a" / "n15075141.TAR", {"a.png": png(1)})
    tar_of(tmp_path / "b" / "n01440764.tar", {"a.png": png(2)})
    found = open_samples(str(tmp_path), 1000)
    assert by_shade(found) == {1: (999,), 2: (0,)}
    assert found.name(0) == "a/n15075141.TAR/a.png"
    refused(tmp_path / "b" / "n01440764.tar", "lie in no class folder")


def test_two_kinds_in_one_folder_are_refused(tmp_path: Path) -> None:
    tar_of(tmp_path / "n01440764.tar", {"a.png": png(1)})
    (tmp_path / "n01440764").mkdir()
    (tmp_path / "n01440764" / "b.png").write_bytes(png(2))
    refused(tmp_path, "holds 1 images, 1 tar and 0 parquet files")
    outer = tar_of(tmp_path / "out" / "all.tar", {"n01440764.tar": b"", "n01440764/a.png": png(1)})
    refused(outer, "holds the archive 'n01440764.tar'; unpack the outer one")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_called_tar_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "val.tar")
    refused(tmp_path / "val.tar", "is no regular file")
    refused(tmp_path, "is no regular file")


def test_a_tar_that_shrinks_while_it_is_read_names_its_images(tmp_path: Path) -> None:
    path = tmp_path / "val.tar"
    whole = sixty(path)
    found = open_samples(str(path), 1000)
    path.write_bytes(whole[: len(whole) // 2])
    reasons = unreadable(found)
    assert 20 < len(reasons) < 40
    assert set(reasons.values()) == {"val.tar was shortened"}
