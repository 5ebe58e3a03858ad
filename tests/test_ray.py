"""predict and evaluate on a Ray cluster: what comes of it is what one machine gives."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atm_export import cluster
from atm_export.cli import main
from atm_export.cluster import Reply, Tasks
from atm_export.errors import AtmExportError, ConfigError, MissingDependencyError, NonFiniteError
from atm_export.measure.accuracy import batches, evaluation, ray_batches
from atm_export.measure.accuracy.place import Place
from atm_export.measure.data.carried import carried
from atm_export.measure.data.decode import decode
from atm_export.measure.data.readers import FileReader
from atm_export.predict import ray_shards
from atm_export.predict.run import Options, predict_run
from atm_export.runs.carried import packed, require_versions, unpacked
from atm_export.runs.reading import open_run
from atm_export.runs.writing import versions
from tests.run_folders import real_run

LOCAL = Options(batch=4, shard_size=8, workers=0, threads=1)
COUNT = 20


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of one node with one core."""
    ray = pytest.importorskip("ray", reason="needs atm-export[ray]")
    ray.init(
        "local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def traced_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with trace outputs, which evaluate need not translate again."""
    return real_run(tmp_path_factory.mktemp("runs") / "traced", model="demo", trace=True)


@pytest.fixture(scope="module")
def photos(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 digits in class folders, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    files = sorted(digits.glob("*/*.png"))[:COUNT]
    for file in files:
        place = folder / file.relative_to(digits)
        place.parent.mkdir(exist_ok=True)
        shutil.copy(file, place)
    (folder / files[5].relative_to(digits)).write_bytes(b"no picture \\ at all")
    return folder


def dying_once(task: Callable[..., Reply], marker: Path) -> Callable[..., Reply]:
    """The task, whose process dies at its first call."""

    def there(*arguments: Any) -> Reply:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task(*arguments)

    return there


def test_predict_gives_the_same_bytes_though_a_worker_dies_and_the_driver_is_cut_short(
    ray: Any, traced_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="needs atm-export[data]")
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    predict_run(traced_folder, str(photos), here, LOCAL)
    dying = dying_once(ray_shards._answered_there, tmp_path / "died")
    monkeypatch.setattr(ray_shards, "_answered_there", dying)

    def cut(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    options = replace(LOCAL, threads=0, ray="auto")
    with pytest.raises(KeyboardInterrupt):
        predict_run(traced_folder, str(photos), there, options, progress=cut)
    assert (tmp_path / "died").exists() and not there.exists()
    found = predict_run(traced_folder, str(photos), there, options)
    assert 0 < found.pictures < COUNT and len(found.unreadable) == 1
    assert 0 < found.busy < found.seconds
    for suffix in ("", ".unreadable.txt"):
        one, other = (path.with_name(path.name + suffix) for path in (here, there))
        assert one.read_bytes() == other.read_bytes()
    assert predict_run(traced_folder, str(photos), there, LOCAL).reused


def evaluated(
    folder: Path, photos: Path, runner: str, **how: Any
) -> tuple[evaluation.Evaluation, dict[str, Any]]:
    """An evaluation, and its rate by itself; the journal stays."""
    options = batches.Options(runner=runner, batch=8, workers=0)
    found = evaluation.evaluate_run(open_run(folder), Place(str(photos)), options, **how)
    return found, found.facts.pop("rate")


def test_evaluate_gives_the_same_rows_though_a_worker_dies(
    ray: Any, traced_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = evaluated(traced_folder, photos, "onnxruntime", threads=1)
    here.journal.unlink()
    dying = dying_once(ray_batches._counted_there, tmp_path / "died")
    monkeypatch.setattr(ray_batches, "_counted_there", dying)
    there, rate = evaluated(traced_folder, photos, "onnxruntime", ray="auto")
    assert (tmp_path / "died").exists()
    assert rate["images"] == COUNT and 0 < rate["share_in_model"] < 1
    again, rate = evaluated(traced_folder, photos, "onnxruntime", ray="auto")
    there.journal.unlink()
    assert rate == {"images": 0}  # all was in the journal
    assert here.files() == there.files() == again.files()


def test_the_eager_reference_runs_there_too(ray: Any, traced_folder: Path, photos: Path) -> None:
    here, _ = evaluated(traced_folder, photos, "eager", threads=1)
    here.journal.unlink()
    there, _ = evaluated(traced_folder, photos, "eager", ray="auto")
    there.journal.unlink()
    assert here.files() == there.files()


def test_few_calls_more_than_there_is_room_for_are_made(ray: Any) -> None:
    drawn: list[int] = []

    def calls() -> Iterator[tuple[int, tuple[int]]]:
        for i in range(6):
            drawn.append(i)
            yield i, (i,)

    tasks, found = Tasks("auto", lambda value: Reply(2 * value, "here", 1.0, 2.0)), {}
    for number, value in tasks.replies(calls()):
        found[number] = value
        assert len(drawn) <= len(found) + cluster.width_of(ray, 1) + 1
    assert found == {i: 2 * i for i in range(6)}
    assert tasks.device == "here" and tasks.share == 0.5


def test_errors_of_a_node_name_the_folder_that_is_here(
    ray: Any, traced_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="needs atm-export[data]")
    line = ["predict", str(traced_folder), "--images", str(photos), "--ray", "auto"]
    line += ["--out", str(tmp_path / "new" / "a.parquet")]
    assert main([*line, "--engine", "model.int8.onnxruntime.onnx"]) == 10
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{traced_folder} has no 'model.int8.onnxruntime.onnx'" in said
    assert main([*line, "--threads", "200"]) == 2
    assert "no node has more than 1; give fewer --threads" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def failing(error: Exception) -> Callable[[int], Reply]:
    """A task that travels by value: its process need not import this module."""

    def there(value: int) -> Reply:
        raise error

    return there


@pytest.mark.parametrize(
    ("task", "kind", "says"),
    [
        (failing(NonFiniteError("image 0 holds NaN")), NonFiniteError, r"^image 0 holds NaN$"),
        (
            failing(RuntimeError("first line\nthe disk of the node is full")),
            AtmExportError,
            r"^a task failed on the Ray cluster: .*of the node is full$",
        ),
        (
            lambda value: Reply(value, f"device {value}", 1.0, 1.0),
            AtmExportError,
            r"nodes differ: .* device ., another on device",
        ),
    ],
    ids=["ours", "any", "device"],
)
def test_what_fails_there_is_one_line_here(
    task: Callable[[int], Reply], kind: type[AtmExportError], says: str, ray: Any
) -> None:
    with pytest.raises(kind, match=says) as raised:
        list(Tasks("auto", task).replies((i, (i,)) for i in range(3)))
    assert type(raised.value) is kind


def test_what_cannot_run_elsewhere(
    traced_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="needs atm-export[data]")
    run, out = open_run(traced_folder), tmp_path / "a.parquet"
    with pytest.raises(ConfigError, match="engines of TensorRT run on the GPU"):
        predict_run(run.folder, str(photos), out, Options(backend="tensorrt", ray="auto"))
    with pytest.raises(ConfigError, match="engines of TensorRT run on the GPU"):
        options = batches.Options(runner="tensorrt", workers=0)
        evaluation.evaluate_run(run, Place(str(photos)), options, ray="auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"atm-export\[ray\]"):
        predict_run(run.folder, str(photos), out, replace(LOCAL, ray="auto"))
    assert not list(tmp_path.iterdir())


def test_where_nobody_listens_there_is_no_cluster() -> None:
    ray = pytest.importorskip("ray", reason="needs atm-export[ray]")
    with socket.socket() as taken, pytest.MonkeyPatch.context() as patch:
        taken.bind(("127.0.0.1", 0))  # and never listens
        patch.setattr(ray, "is_initialized", lambda: False)
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AtmExportError, match=rf"^--ray {address}: no cluster there \(.+\)$"):
            cluster.joined_cluster(address)


def test_nodes_have_the_same_versions() -> None:
    require_versions(versions())
    with pytest.raises(AtmExportError, match=r"node of the cluster has numpy .* this machine 0\.1"):
        require_versions({**versions(), "numpy": "0.1"})


def test_a_run_travels_as_bytes(traced_folder: Path) -> None:
    files = dict(packed(open_run(traced_folder)))
    with unpacked(files, "build/run") as there:
        assert open_run(there).manifest == open_run(traced_folder).manifest
    files["model.onnx"] = files["model.onnx"][:-1] + b"x"
    with (
        pytest.raises(AtmExportError, match=r"^build/run/model.onnx was changed"),
        unpacked(files, "build/run") as there,
    ):
        open_run(there)


def test_carried_images_are_decoded_as_where_they_lay(traced_folder: Path, photos: Path) -> None:
    files = (*sorted(photos.rglob("*.png"))[3:8], photos / "absent.png", photos)
    reader, how = FileReader(photos.parent, files), open_run(traced_folder).input.preprocessing
    chosen = range(1, len(files))
    here = decode(reader, how, chosen)
    there = decode(carried(reader, {}, chosen), how, chosen)
    assert (here.pixels == there.pixels).all()
    assert replace(here, pixels=there.pixels) == replace(there)
    assert len(here.unreadable) == 3
