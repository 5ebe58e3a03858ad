"""Data sets in every layout, and what is right for each image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from atm_export.errors import ConfigError, DataError
from atm_export.measure.data.decode import decode
from atm_export.measure.data.samples import open_samples
from tests.data_sets import HOW, SYNSETS, by_shade, png, save, tar_of


def test_a_subset_of_synsets_gets_canonical_classes(tmp_path: Path) -> None:
    for shade, synset in enumerate(SYNSETS):
        save(tmp_path / synset / "a.png", shade)
    assert by_shade(open_samples(str(tmp_path), 1000)) == {0: (999,), 1: (0,), 2: (207,)}


def test_class_folders_of_another_model(tmp_path: Path) -> None:
    for shade, name in enumerate(("cat", "ant", "bee")):
        save(tmp_path / name / "a.png", shade)
    by_order = {0: (2,), 1: (0,), 2: (1,)}
    assert by_shade(open_samples(str(tmp_path), 3)) == by_order
    names = ["bee", "cat", "dog", "ant"]
    assert by_shade(open_samples(str(tmp_path), 4, names)) == {0: (1,), 1: (3,), 2: (0,)}
    with pytest.raises(DataError, match=r"3 class folders .* the model has 7 classes"):
        open_samples(str(tmp_path), 7)


def test_unknown_synsets_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        open_samples(str(tmp_path), 1000)
    save(tmp_path / "n01440764" / "a.png")
    save(tmp_path / "n99999999" / "a.png")
    with pytest.raises(DataError, match="'n99999999' is no ImageNet-1k synset"):
        open_samples(str(tmp_path), 1000)
    with pytest.raises(DataError, match="no image folder"):
        open_samples(str(tmp_path / "absent"), 1000)


def test_labels_files(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for shade in range(3):
        save(images / f"{shade}.png", shade)
    with pytest.raises(DataError, match="--labels FILE"):
        open_samples(str(images), 10)
    labels = tmp_path / "labels.txt"
    labels.write_text("4\n5\n6\n")
    assert by_shade(open_samples(str(images), 10, labels=labels)) == {0: (4,), 1: (5,), 2: (6,)}
    labels.write_text("2.png 1\n0.png,3\n1.png 2\n")
    assert by_shade(open_samples(str(images), 10, labels=labels)) == {0: (3,), 1: (2,), 2: (1,)}
    labels.write_text("2.png n15075141\n0.png n01440764\n1.png 7\n")
    assert by_shade(open_samples(str(images), 1000, labels=labels))[2] == (999,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1\n2\n", "2 labels, but there are 3 images"),
        ("0.png 1\n1.png 1\n", "none for 2.png"),
        ("1\n2\n10\n", "'10' is no class"),
        ("1\n2\ncat\n", "'cat' is no class"),
    ],
)
def test_labels_files_that_do_not_fit(tmp_path: Path, text: str, says: str) -> None:
    for shade in range(3):
        save(tmp_path / "images" / f"{shade}.png", shade)
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    with pytest.raises(DataError, match=says):
        open_samples(str(tmp_path / "images"), 10, labels=labels)
    with pytest.raises(ConfigError, match="give one"):
        open_samples(str(tmp_path / "images"), 10, labels=labels, real=labels)


def test_real_labels_allow_several_classes_and_none(tmp_path: Path) -> None:
    for k in (1, 2, 3):
        save(tmp_path / "val" / "n01440764" / f"ILSVRC2012_val_{k:08d}.png", k)
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[4, 5], [], [6]]))
    found = open_samples(str(tmp_path / "val"), 1000, real=real)
    assert by_shade(found) == {1: (4, 5), 2: (), 3: (6,)}
    real.write_text(json.dumps([[4]]))
    with pytest.raises(DataError, match="no ReaL labels"):
        open_samples(str(tmp_path / "val"), 1000, real=real)


def test_tar_of_class_folders(tmp_path: Path) -> None:
    members = {f"{synset}/a.png": png(shade) for shade, synset in enumerate(SYNSETS)}
    path = tar_of(tmp_path / "val.tar", members)
    assert by_shade(open_samples(str(path), 1000)) == {0: (999,), 1: (0,), 2: (207,)}


def test_a_tar_for_each_class(tmp_path: Path) -> None:
    for shade, synset in enumerate(SYNSETS):
        tar_of(tmp_path / f"{synset}.tar", {"a.png": png(shade)})
    assert by_shade(open_samples(str(tmp_path), 1000)) == {0: (999,), 1: (0,), 2: (207,)}


def test_webdataset_shards(tmp_path: Path) -> None:
    for shard in range(2):
        members = {}
        for i in range(2):
            shade = 2 * shard + i
            members |= {f"{shade:05d}.png": png(shade), f"{shade:05d}.cls": f"{shade + 3}".encode()}
        tar_of(tmp_path / f"val-{shard:04d}.tar", members)
    found = open_samples(str(tmp_path), 10)
    assert by_shade(found) == {i: (i + 3,) for i in range(4)}
    assert found.reader.name(3) == "val-0001.tar/00003.png"


def test_a_torn_tar_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "val.tar").write_bytes(b"no tar at all")
    with pytest.raises(DataError, match=r"cannot read .*val\.tar"):
        open_samples(str(tmp_path), 1000)


def test_hugging_face_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs atm-export[data]")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(SYNSETS))}
    )
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "label": [0, 1, 2]}
    table = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "hf").mkdir()
    table.to_parquet(tmp_path / "hf" / "validation-00000-of-00001.parquet")
    found = open_samples(str(tmp_path / "hf"), 1000)
    assert by_shade(found) == {0: (999,), 1: (0,), 2: (207,)}


def test_what_can_be_decoded_and_what_not(tmp_path: Path) -> None:
    kinds = ("L", "CMYK", "RGB", "P", "LA", "1")
    for kind in kinds:
        suffix = "tif" if kind == "CMYK" else "png"
        Image.new(kind, (30, 20)).save(tmp_path / f"{kind}.{suffix}")
    Image.new("I;16", (30, 20), 0x8040).save(tmp_path / "deep.png")
    Image.new("RGB", (640, 20)).save(tmp_path / "wide.png")
    Image.new("RGB", (20000, 20)).save(tmp_path / "wider.png")
    whole = tmp_path / "z-short.jpg"
    Image.effect_noise((200, 200), 90).save(whole)
    whole.write_bytes(whole.read_bytes()[:-2000])
    (tmp_path / "z-text.png").write_text("no image")
    (tmp_path / "z-nothing.png").write_bytes(b"")
    found = open_samples(str(tmp_path), 10, labels=None, real=_everything(tmp_path))
    got = decode(found.reader, HOW, range(len(found)))
    names = [found.name(i) for i in got.kept]
    assert len(got.pixels) == len(got.kept) == len(kinds) + 2
    bad = [found.name(i) for i, _ in got.unreadable]
    assert bad == ["wider.png", "z-nothing.png", "z-short.jpg", "z-text.png"]
    assert all(reason for _, reason in got.unreadable)
    assert (got.pixels[names.index("deep.png")] == 0x80).all()  # not clipped to white


def _everything(folder: Path) -> Path:
    real = folder.parent / "real.json"
    real.write_text(json.dumps({path.name: [1] for path in folder.iterdir()}))
    return real
