"""The Python runtime: every kind of picture, clear choices, the same from any thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from atm_export import demo
from atm_export.backends.onnxruntime import providers
from atm_export.backends.onnxruntime.serving import check_version
from atm_export.errors import (
    ConfigError,
    DataError,
    NotARunError,
    RunFolderError,
    RuntimeVersionError,
)
from atm_export.runs.reading import open_run
from atm_export.runtime import Session, check_golden, load
from tests.shared_data import sample_images

CLEAN = """
import sys, time
for name in ('torch', 'timm', 'onnx', 'pydantic', 'yaml', 'rich', 'cyclopts', 'huggingface_hub'):
    sys.modules[name] = None
import numpy, PIL.Image
start = time.process_time()
import atm_export.runtime
taken = time.process_time() - start
assert 'onnxruntime' not in sys.modules
session = atm_export.runtime.load(sys.argv[1])
assert all(finding.ok for finding in atm_export.runtime.check_golden(session))
print(taken)
"""


@pytest.fixture(scope="module")
def session(demo_folder: Path) -> Session:
    return load(demo_folder, threads=1)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    sizes = [(80, 60), (60, 90), (56, 56), (200, 33)]
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_it_needs_none_of_the_exporters_packages_and_imports_fast(demo_folder: Path) -> None:
    taken = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", CLEAN, str(demo_folder)],
            check=True,
            timeout=120,
            capture_output=True,
            text=True,
        )
        taken.append(float(done.stdout.split()[-1]))
    assert min(taken) < 0.3


def test_all_kinds_of_pictures_give_the_same(
    session: Session, pictures: list[Image.Image], tmp_path: Path
) -> None:
    picture = pictures[0]
    path = tmp_path / "a.png"
    picture.save(path)
    expected = session.predict(picture)
    assert expected.shape == (1, 10) and expected.dtype == np.float32
    kinds = [path, str(path), path.read_bytes(), np.asarray(picture), [picture], [str(path)]]
    kinds += [session.prepare(picture), session.prepare(picture)[0], np.asarray(picture)[None]]
    kinds += [session.prepare(picture).astype(np.float64)]
    for kind in kinds:
        assert np.array_equal(session.predict(kind), expected)


def test_the_batch_is_what_is_given_or_batch_size(
    session: Session, pictures: list[Image.Image]
) -> None:
    batch = session.prepare(pictures)
    assert np.array_equal(session.predict(pictures), session.run(batch)["logits"])
    alone = np.concatenate([session.predict(picture) for picture in pictures])
    assert np.array_equal(session.predict(pictures, batch_size=1), alone)
    assert session.policy == "adaptive"


def test_labels_come_likeliest_first(session: Session, pictures: list[Image.Image]) -> None:
    answers = session.classify(pictures, top_k=3)
    logits = session.predict(pictures)
    assert [answer[0].index for answer in answers] == logits.argmax(axis=1).tolist()
    for answer in answers:
        assert len(answer) == 3 and answer[0].name == str(answer[0].index)
        assert answer[0].probability >= answer[1].probability >= answer[2].probability
    everything = session.classify(pictures[0], top_k=99)[0]
    assert len(everything) == 10
    assert sum(label.probability for label in everything) == pytest.approx(1)


def test_uint8_graphs_take_pictures_and_refuse_floats(uint8_folder: Path) -> None:
    session = load(uint8_folder)
    assert session.predict(Image.new("RGB", (70, 50))).shape == (1, 7)
    assert session.classify(Image.new("RGB", (70, 50)), 1)[0][0].name
    assert all(finding.ok for finding in check_golden(session))
    with pytest.raises(DataError, match="takes uint8"):
        session.predict(np.zeros((3, 48, 48), np.float32))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "no image"),
        (b"", "cannot be read"),
        (b"\xff\xd8\xff\xe0 junk", "cannot be read"),
        ("absent.jpeg", "absent.jpeg"),
        (np.zeros((2, 2), np.uint8), "no picture"),
        (np.zeros((2, 2, 4), np.uint8), "no picture"),
        (np.zeros((0, 2, 3), np.uint8), "no picture"),
        (np.zeros((2, 2, 3), np.int64), "no picture"),
        (np.zeros((3, 8, 8), np.float32), "normalised images must"),
        (np.full((3, 56, 56), np.nan, np.float32), "NaN"),
        ([3], "int is no picture"),
    ],
)
def test_what_is_no_picture_is_said(session: Session, bad: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        session.predict(bad)  # type: ignore[arg-type]


def endless() -> Iterator[str]:
    while True:
        yield "a.png"


@pytest.mark.parametrize(
    "bad",
    [
        None,
        3,
        2.5,
        True,
        {"image": "a.png"},
        {"a.png"},
        object(),
        endless(),
        (),
        [None],
        [["a.png"]],
        [[]],
        [{}],
        [b"", None],
        "",
        ".",
        "a\0b",
        bytearray(b"x"),
        np.array(["a.png"]),
        np.array([None, None], dtype=object),
        np.array(None, dtype=object),
        np.empty((1, 2, 2, 3), dtype=object),
        np.zeros((0, 3, 56, 56), np.float32),
        np.zeros((1, 1, 3, 56, 56), np.float32),
        np.zeros((3, 56, 56), np.complex64),
        np.full((3, 56, 56), 1e300),
    ],
    ids=lambda value: f"{type(value).__name__} {str(value)[:12]!r}",
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_anything_may_be_given_and_is_said(session: Session, bad: Any) -> None:
    for ask in (session.predict, session.classify, session.prepare):
        with pytest.raises((DataError, ConfigError)) as caught:
            ask(bad)
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [0, -1, 10**9, True, False, "3", 2.5, None, float("nan"), [1]])
def test_top_k_and_batch_size_are_whole_numbers(session: Session, bad: Any) -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"top_k .*give a whole number from 1"):
        session.classify(picture, bad)
    with pytest.raises(ConfigError, match="top_k"):
        session.ranked(np.zeros((1, 10), np.float32), bad)
    if bad is not None:
        for ask in (session.predict, session.classify):
            with pytest.raises(ConfigError, match=r"batch_size .*give a whole number from 1"):
                ask(picture, batch_size=bad)


def test_whole_numbers_of_numpy_are_taken(session: Session) -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    found = session.classify([picture, picture], np.int64(2), batch_size=np.uint8(1))  # type: ignore[arg-type]
    assert [len(labels) for labels in found] == [2, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"providers": "cpu"},
        {"providers": [1]},
        {"providers": {"cpu": 1}},
        {"providers": []},
        {"providers": ["cpu"], "engine": "auto"},
        {"threads": 2, "engine": "auto"},
    ],
    ids=str,
)
def test_options_of_load_that_cannot_be_meant(demo_folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load(demo_folder, **options)


@pytest.mark.parametrize("folder", [None, 3, "", b"x", ["a"]], ids=str)
def test_a_folder_that_is_none(folder: Any) -> None:
    with pytest.raises((ConfigError, NotARunError)):
        load(folder)


def test_a_graph_with_other_logits_is_refused(demo_folder: Path) -> None:
    run = open_run(demo_folder)

    class Other:
        about, providers, facts = "other", ("none",), None

        def __init__(self, outputs: dict[str, np.ndarray]) -> None:
            self.outputs = outputs

        def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
            return self.outputs

    for outputs in ({}, {"logits": np.zeros((1, 9), np.float32)}, {"logits": np.zeros(10)}):
        with pytest.raises(RunFolderError, match="the graph's logits are"):
            Session(run, Other(outputs)).run(np.zeros((1, 3, 56, 56), np.float32))


def test_raw_run_checks_shape_and_dtype(session: Session) -> None:
    assert set(session.run(np.zeros((2, 3, 56, 56), np.float32))) == {"logits"}
    for nothing in (None, [[0.0]], "a.png"):
        with pytest.raises(DataError, match="takes a NumPy array"):
            session.run(nothing)  # type: ignore[arg-type]
    for wrong in (np.zeros((2, 3, 55, 56), np.float32), np.zeros((2, 3, 56, 56), np.float64)):
        with pytest.raises(DataError, match="the graph takes float32"):
            session.run(wrong)
    with pytest.raises(ConfigError, match="top_k 0"):
        session.classify(np.zeros((2, 2, 3), np.uint8), 0)


def test_providers_go_by_order_and_say_why(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ("CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(providers, "cuda_devices", lambda: 0)
    choice = providers.choose(None, both)
    assert choice.taken == ("CPUExecutionProvider",)
    assert "not CUDAExecutionProvider: no NVIDIA GPU" in providers.describe(
        "1", choice.taken, choice
    )
    with pytest.raises(ConfigError, match=r"no usable provider .*no NVIDIA GPU.*add 'cpu'"):
        load(demo_folder, providers=["cuda"])
    with pytest.raises(ConfigError, match="unknown provider 'gpu'"):
        load(demo_folder, providers=["gpu"])
    monkeypatch.setattr(providers, "cuda_devices", lambda: 1)
    assert providers.choose(["cpu", "cuda"], both).taken == both[::-1]
    assert providers.choose(None, both).taken[0] == both[0]
    assert "openvino" in providers.NAMES
    text = providers.describe("1", both[1:], providers.choose(None, both))
    assert "could not start" in text


def test_an_old_onnx_runtime_is_refused() -> None:
    check_version("1.31.1", 23)
    with pytest.raises(RuntimeVersionError, match=r"opset 23, which needs onnxruntime 1\.22"):
        check_version("1.21.0+cu12", 23)


def test_io_binding_gives_the_same(session: Session, pictures: list[Image.Image]) -> None:
    batch = session.prepare(pictures)
    bound = session._server.run_bound(batch, "cpu")  # type: ignore[attr-defined]
    assert np.array_equal(bound["logits"], session.run(batch)["logits"])


def test_equals_timms_transform_on_100_images() -> None:
    from atm_export.inputs import InputSpec, Preprocessing
    from atm_export.runtime.pictures import batch_of

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    how = Preprocessing((224, 224), 0.9, "bicubic", mean, std)
    transform = create_transform(
        (3, 224, 224), crop_pct=0.9, interpolation="bicubic", mean=mean, std=std
    )
    grey = np.asarray(std, np.float32)[:, None, None] * 255
    differences = []
    for path in sample_images(step=5):
        with Image.open(path) as image:
            theirs = transform(image.convert("RGB")).numpy()
        differences.append((np.abs(batch_of(path, InputSpec(how))[0] - theirs) * grey).max())
    assert len(differences) >= 10 and np.max(differences) < 0.01, "grey levels; NaN fails"


def resident() -> int:
    """Bytes in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ask_from_threads(session: Session, batches: list[np.ndarray], requests: int) -> list[int]:
    """8 threads, `requests` each; the numbers of wrong answers and of errors."""
    expected = [session.run(batch)["logits"] for batch in batches]
    wrong: list[int] = []

    def ask(first: int) -> None:
        bad = 0
        try:
            for i in range(requests):
                k = (first + i) % len(batches)
                bad += not np.array_equal(session.run(batches[k])["logits"], expected[k])
        except Exception:  # counted as an answer that never came
            bad += requests
        wrong.append(bad)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_8_threads_of_1000_requests_equal_one_thread(uint8_folder: Path) -> None:
    session = load(uint8_folder, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 48, 48, 3), dtype=np.uint8)
    batches = [pixels[i : i + 1 + i % 3] for i in range(8)]
    assert ask_from_threads(session, batches, 100) == [0] * 8
    before = resident()
    assert ask_from_threads(session, batches, 1000) == [0] * 8
    assert resident() < 1.05 * before


def test_a_reader_that_has_seen_enough_is_no_error(demo_folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "digit.png"
    demo.heldout()[0][0].save(picture)
    command = [sys.executable, "-m", "atm_export.runtime", "classify", str(demo_folder)]
    process = subprocess.Popen(
        [*command, *[str(picture)] * 3], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    told = process.stderr.read().decode()
    assert process.wait() == 0, told
    assert "Traceback" not in told and "Exception ignored" not in told
