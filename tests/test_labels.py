"""Labels files and ReaL labels: every line fits one image, or is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from atm_export.errors import DataError
from atm_export.measure.data.samples import open_samples
from tests.data_sets import by_shade, png, save, tar_of


def labelled(folder: Path, names: list[str], text: str | bytes) -> dict[int, tuple[int, ...]]:
    """What is right by the number of each image in `names`."""
    for shade, name in enumerate(names):
        save(folder / "images" / name, shade)
    labels = folder / "labels.txt"
    labels.write_bytes(text if isinstance(text, bytes) else text.encode())
    return by_shade(open_samples(str(folder / "images"), 10, labels=labels))


@pytest.mark.parametrize(
    "text",
    [
        "my cat.png 3\na,b.png 4\n",
        '"my cat.png" 3\n"a,b.png" 4\n',
        'my cat.png,3\r\n"a,b.png","4"\r\n',
        "\ufeffmy cat.png\t3\n\na,b.png\t4",
        "./my cat.png 3\nimages/a,b.png , 4\n",
    ],
)
def test_names_with_spaces_and_commas(tmp_path: Path, text: str) -> None:
    assert labelled(tmp_path, ["my cat.png", "a,b.png"], text) == {0: (3,), 1: (4,)}


def test_names_with_quotes_and_bytes(tmp_path: Path) -> None:
    names = ['6" disk.png', os.fsdecode(b"caf\xe9.png")]
    text = b'"6"" disk.png" 3\ncaf\xe9.png 4\n'
    assert labelled(tmp_path, names, text) == {0: (3,), 1: (4,)}


@pytest.mark.parametrize(
    ("names", "text", "says"),
    [
        (["a.png"], "a.png 1\na.png 2\n", r"line 2 names 'a.png' again \(line 1\)"),
        (["a.png"], "a.png 1\na.png 1\n", "line 2 names 'a.png' again"),
        (["a.png"], "x/a.png 1\ny/a.png 2\n", "'a.png' is the name of line 1, 2 and of 1 images"),
        (["x/a.png", "y/a.png"], "a.png 1\n", r"2 images; .*in full, as 'x/a.png'"),
        (["x/a.png", "y/a.png"], "v/x/a.png 1\nv/y/a.png 2\n", "line 1, 2 and of 2 images"),
        (["a.png", "b.png"], "a.png 1\n2\n", "line 2 has no image name"),
        (["a.png"], "a.png 1 2 x\n", "none for a.png"),
        (["a.png"], "a.png,\n", "line 1 holds no label"),
        (["a.png"], "a.png 10\n", "'10' is no class of a model of 10"),
        (["a.png"], "a.png -1\n", "'-1' is no class"),
        (["a.png"], f"a.png {'9' * 5000}\n", "'9999999999.* is no class"),
        (["a.png"], "", "0 labels for 1 images"),
        (["a.png"], "a.png 1\n".encode("utf-16"), "no plain text .UTF-16.*; save it as UTF-8"),
        (["1.png", "2.png", "10.png"], "1\n2\n3\n", "labels alone are ambiguous.*'10.png' or"),
    ],
)
def test_lines_that_fit_no_image_or_several(
    tmp_path: Path, names: list[str], text: str | bytes, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        labelled(tmp_path, names, text)
    assert "\n" not in str(caught.value)


def test_two_images_of_one_name_have_their_own_lines(tmp_path: Path) -> None:
    assert labelled(tmp_path, ["x/a.png", "y/a.png"], "x/a.png 1\ny/a.png 2\n") == {
        0: (1,),
        1: (2,),
    }


def test_labels_alone_follow_the_order_of_an_archive(tmp_path: Path) -> None:
    tar_of(tmp_path / "val.tar", {f"{i}.png": png(i) for i in (2, 10, 1)})
    labels = tmp_path / "labels.txt"
    labels.write_text("4\n5\n6\n")
    found = open_samples(str(tmp_path / "val.tar"), 10, labels=labels)
    assert by_shade(found) == {2: (4,), 10: (5,), 1: (6,)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"k.png": [10]}', "'k.png': 10 is no class of a model of 10"),
        ('{"k.png": [-1]}', "-1 is no class"),
        ('{"k.png": [true]}', "True is no class"),
        ('{"k.png": ["3"]}', "3 is no class"),
        ('{"k.png": [1.5]}', "1.5 is no class"),
        ('{"k.png": 3}', "has no list of classes"),
        ('{"k.png": [[3, 4]]}', "is no class"),
        ('{"k.png": [3], "k.png": [4]}', "two values for the key 'k.png'"),
        ('{"x/k.png": [3], "y/k.png": [4]}', "two entries are for 'k'"),
        ("3", "neither a list nor a table"),
        ("[1, 2]", "has no list of classes"),
        ("[" * 100_000, "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "no ReaL labels for k"),
        ("{}", "no ReaL labels for k"),
    ],
)
def test_real_labels_that_do_not_fit(tmp_path: Path, text: str, says: str) -> None:
    save(tmp_path / "images" / "k.png")
    real = tmp_path / "real.json"
    real.write_text(text)
    with pytest.raises(DataError, match=says):
        open_samples(str(tmp_path / "images"), 10, real=real)


def test_real_labels_for_two_images_of_one_name(tmp_path: Path) -> None:
    for name in ("k.png", "k.jpg"):
        save(tmp_path / "images" / name)
    real = tmp_path / "real.json"
    real.write_text(json.dumps({"k.png": [3]}))
    with pytest.raises(DataError, match=r"fit two images, k.jpg and k.png"):
        open_samples(str(tmp_path / "images"), 10, real=real)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_labels_in_a_pipe_do_not_hang(tmp_path: Path) -> None:
    save(tmp_path / "images" / "k.png")
    os.mkfifo(tmp_path / "labels")
    for given in ({"labels": tmp_path / "labels"}, {"real": tmp_path / "labels"}):
        with pytest.raises(DataError, match="is no regular file"):
            open_samples(str(tmp_path / "images"), 10, **given)  # type: ignore[arg-type]
