"""predict: one file of answers for any number of pictures, however often it was cut short."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atm_export.cli import main
from atm_export.errors import ConfigError, DataError, MissingDependencyError, OutputError
from atm_export.predict import run as predicting
from atm_export.predict.pictures import open_pictures
from atm_export.predict.run import Options, Predicted, predict_run
from atm_export.predict.shards import shards_of
from atm_export.runs.writing import WorkFolder
from atm_export.runtime import load
from atm_export.runtime.session import Session
from tests.data_sets import png, tar_of
from tests.run_folders import real_run
from tests.snapshots import snapshot

pq = pytest.importorskip("pyarrow.parquet", reason="needs atm-export[data]")

SMALL = Options(batch=4, shard_size=8, workers=0, threads=1)
COUNT = 22


@pytest.fixture(scope="module")
def photos(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 pictures in folders, of which two cannot be read; a text file lies beside them."""
    folder = tmp_path_factory.mktemp("photos")
    for i, file in enumerate(sorted(digits.glob("*/*.png"))[:COUNT]):
        place = folder / f"{i // 9}" / f"{i:02d}.png"
        place.parent.mkdir(exist_ok=True)
        shutil.copy(file, place)
    (folder / "0" / "05.png").write_bytes(b"no picture")
    (folder / "2" / "21.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def embedding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "embed"
    return real_run(out, model="timm:test_vit", weights="random", task="embed", method="none")


def predicted(
    run: Path, images: Path, out: Path, options: Options = SMALL, **how: Any
) -> Predicted:
    return predict_run(run, str(images), out, options, **how)


def test_a_classifier_gives_what_its_session_gives(
    demo_folder: Path, photos: Path, tmp_path: Path
) -> None:
    found = predicted(demo_folder, photos, tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    names = table["path"].to_pylist()
    assert names == sorted(names) and len(names) == found.rows == COUNT - 2
    assert [name for name, _ in found.unreadable] == ["0/05.png", "2/21.png"]
    assert (tmp_path / "a.parquet.unreadable.txt").read_text().count("\n") == 2
    session = load(demo_folder, threads=1)
    for batch in (names[:4], names[4:7]):  # the second lost its 05.png
        for row, labels in enumerate(session.classify([photos / name for name in batch])):
            at = names.index(batch[row])
            assert table["top_classes"][at].as_py() == [label.index for label in labels]
            assert table["top_labels"][at].as_py() == [label.name for label in labels]
            shares = np.array([label.probability for label in labels], np.float32)
            assert table["top_probabilities"][at].as_py() == shares.tolist()
    groups = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert [groups.row_group(k).num_rows for k in range(groups.num_row_groups)] == [7, 8, 5]
    assert table.schema.metadata[b"atm_export.task"] == b"classify"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".atm-export.json",
        "a.parquet",
        "a.parquet.unreadable.txt",
    ]


def test_embeddings_are_those_of_the_session(
    embedding_folder: Path, photos: Path, tmp_path: Path
) -> None:
    predicted(embedding_folder, photos, tmp_path / "e.parquet")
    table = pq.read_table(tmp_path / "e.parquet")
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[64]"
    first = [photos / name for name in table["path"].to_pylist()[:4]]
    vectors = np.array(table["embedding"].to_pylist()[:4], np.float32)
    assert np.array_equal(vectors, load(embedding_folder, threads=1).embed(first))
    with pytest.raises(ConfigError, match="--top-k is of classes"):
        predicted(embedding_folder, photos, tmp_path / "x.parquet", Options(top_k=3))


def cut_between_shard_and_note(patch: pytest.MonkeyPatch) -> None:
    write = WorkFolder.write

    def cut(work: WorkFolder, name: str, data: Any) -> Path:
        path = write(work, name, data)
        if name == "shard-0000001":
            path.with_name(f"{name}.done").unlink()
            raise KeyboardInterrupt
        return path

    patch.setattr(WorkFolder, "write", cut)


def cut_in_a_shard(patch: pytest.MonkeyPatch) -> None:
    run, calls = Session.run, []

    def cut(session: Session, image: Any) -> Any:
        calls.append(len(image))
        if len(calls) == 3:
            raise RuntimeError("killed")
        return run(session, image)

    patch.setattr(Session, "run", cut)


def cut_while_joining(patch: pytest.MonkeyPatch) -> None:
    def cut(shards: Any, schema: Any, out: Path) -> Any:
        out.write_bytes(b"half")
        raise KeyboardInterrupt

    patch.setattr(predicting, "joined", cut)


CUTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    cut_in_a_shard,
    cut_between_shard_and_note,
    cut_while_joining,
]


@pytest.mark.parametrize("workers", [0, 1])
def test_cut_short_three_times_it_gives_the_same_bytes(
    workers: int, demo_folder: Path, photos: Path, tmp_path: Path
) -> None:
    predicted(demo_folder, photos, tmp_path / "whole.parquet")
    out, seen = tmp_path / "cut" / "a.parquet", []
    options = Options(batch=4, shard_size=8, workers=workers, threads=1)
    for cut in CUTS:
        with pytest.MonkeyPatch.context() as patch:
            cut(patch)
            with pytest.raises((KeyboardInterrupt, RuntimeError)):
                predicted(demo_folder, photos, out, options)
        assert not out.exists()
    found = predicted(demo_folder, photos, out, options, progress=lambda *at: seen.append(at))
    assert found.pictures == 0 and seen == [(COUNT, COUNT)]
    for suffix in ("parquet", "parquet.unreadable.txt"):
        assert (tmp_path / f"whole.{suffix}").read_bytes() == out.with_name(
            f"a.{suffix}"
        ).read_bytes()
    assert not (out.parent / ".a.parquet.work").exists()


def test_folder_archive_and_list_are_equal(demo_folder: Path, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    names = [file.relative_to(photos).as_posix() for file in files]
    members = {name: file.read_bytes() for name, file in zip(names, files, strict=True)}
    archive = tar_of(tmp_path / "photos.tar", members)
    (photos / "list.txt").write_text("\r\n".join(names))
    places = {"folder": photos, "archive": archive, "list": photos / "list.txt"}
    for name, place in places.items():
        predicted(demo_folder, place, tmp_path / f"{name}.parquet")
    (photos / "list.txt").unlink()
    assert len({(tmp_path / f"{name}.parquet").read_bytes() for name in places}) == 1


def test_the_order_is_the_archives_and_the_lists(tmp_path: Path) -> None:
    members = {"b/2.png": png(2), "a.png": png(1), "notes.txt": b"x"}
    archive = tar_of(tmp_path / "tars" / "one.tar", members)
    assert open_pictures(str(archive)).names == ("b/2.png", "a.png")
    found = open_pictures(str(archive.parent))
    assert found.names == ("one.tar/b/2.png", "one.tar/a.png")
    (tmp_path / "list").write_bytes(b"z.png\n\nabsent.png\n z.png\n")
    assert open_pictures(str(tmp_path / "list")).names == ("z.png", "absent.png", " z.png")


@pytest.mark.skipif(sys.platform == "win32", reason="names of bytes")
def test_odd_names(demo_folder: Path, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = [b"a\xff.png", b"new\nline.png", "ü \\.png".encode()]
    for name in odd:
        shutil.copy(sorted(digits.glob("*/*.png"))[0], os.fsdecode(bytes(folder) + b"/" + name))
    (folder / "list.txt").write_bytes(b"\0".join(sorted(odd)) + b"\0")
    for place in (folder, folder / "list.txt"):
        out = tmp_path / f"{place.stem}.parquet"
        predicted(demo_folder, place, out)
        shown = pq.read_table(out)["path"].to_pylist()
        assert sorted(shown) == ["a\\xff.png", "new\\x0aline.png", "ü \\\\.png"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(batch=2, shard_size=8, workers=0, threads=1), "batch 4, not 2"),
        (Options(top_k=2, batch=4, shard_size=8, workers=0, threads=1), "top-k 5, not 2"),
    ],
)
def test_shards_of_something_else_go_by_force_alone(
    options: Options, says: str, demo_folder: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.parquet"
    with pytest.MonkeyPatch.context() as patch:
        cut_while_joining(patch)
        with pytest.raises(KeyboardInterrupt):
            predicted(demo_folder, photos, out)
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=f"begun with {says}; give --force"):
        predicted(demo_folder, photos, out, options)
    assert {k: v for k, v in snapshot(tmp_path).items() if "lock" not in k} == {
        k: v for k, v in before.items() if "lock" not in k
    }
    assert predicted(demo_folder, photos, out, options, force=True).pictures == COUNT


def test_what_is_there_is_reused_or_refused(
    demo_folder: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.parquet"
    predicted(demo_folder, photos, out)
    before = snapshot(tmp_path)
    assert predicted(demo_folder, photos, out).reused
    other = Options(batch=2, shard_size=8, workers=0, threads=1)
    with pytest.raises(OutputError, match="other options; give --force"):
        predicted(demo_folder, photos, out, other)
    assert snapshot(tmp_path) == before
    assert predicted(demo_folder, photos, out, other, force=True).rows == COUNT - 2
    out.write_bytes(b"edited")
    with pytest.raises(OutputError, match="changed after it was written; give --force"):
        predicted(demo_folder, photos, out)
    (tmp_path / "b.parquet").write_text("precious")
    for force in (False, True):
        with pytest.raises(OutputError, match="no mark of atm-export"):
            predicted(demo_folder, photos, tmp_path / "b.parquet", force=force)
    assert (tmp_path / "b.parquet").read_text() == "precious"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".atm-export.json").write_text("precious")
    with pytest.raises(OutputError, match="no mark of atm-export"):
        predicted(demo_folder, photos, tmp_path / "c" / "a.parquet")
    assert [path.name for path in (tmp_path / "c").iterdir()] == [".atm-export.json"]


@pytest.mark.parametrize("out", [".", "..", "there", "features", "there/../x", "file/a.parquet"])
def test_places_that_are_no_file(
    out: str,
    demo_folder: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("precious")
    before = snapshot(tmp_path)
    assert main(["predict", str(demo_folder), "--images", str(photos), "--out", out]) == 7
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert "--out" in lines[-1] and snapshot(tmp_path) == before


def test_nothing_to_read(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n\n")
    tar_of(tmp_path / "empty.tar", {"notes.txt": b"x"})
    for name in ("empty", "empty.txt", "empty.tar", "absent"):
        with pytest.raises(DataError, match=r"no image"):
            predicted(demo_folder, tmp_path / name, tmp_path / "new" / "a.parquet")
    (tmp_path / "list.txt").write_text("absent.png\nother.png\n")
    with pytest.raises(DataError, match=r"none of 2 pictures .* absent.png \(No such file"):
        predicted(demo_folder, tmp_path / "list.txt", tmp_path / "new" / "a.parquet")
    assert not (tmp_path / "new").exists()


def test_without_pyarrow(
    demo_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"atm-export\[data\]"):
        predicted(demo_folder, photos, tmp_path / "new" / "a.parquet")
    assert not list(tmp_path.iterdir())


def test_batches_never_cross_a_shard() -> None:
    assert shards_of(11, 5, 2) == [
        (range(0, 2), range(2, 4), range(4, 5)),
        (range(5, 7), range(7, 9), range(9, 10)),
        (range(10, 11),),
    ]


def test_the_command_says_how_many_and_where(
    demo_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.parquet"
    line = ["predict", str(demo_folder), "--images", str(photos), "--out", str(out)]
    assert main([*line, "--workers", "0", "--threads", "1", "--top-k", "2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"written {out}: {COUNT - 2} pictures, 2 unreadable in {out}.unreadable.txt" in last
    assert str(tmp_path) not in json.dumps(
        {k.decode(): v.decode("latin-1") for k, v in pq.read_schema(out).metadata.items()}
    )
