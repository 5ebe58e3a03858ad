"""Labels, images and latency: what a run measures itself on, and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from PIL import Image

from atm_export.backends.runner import Array
from atm_export.errors import DataError
from atm_export.inputs import Preprocessing
from atm_export.measure.data.imagenet import imagenet_labels, synset_index
from atm_export.measure.data.images import LIMIT, load_images
from atm_export.measure.speed.latency import compare, interleave
from atm_export.model.demo import digits

HOW = Preprocessing((16, 16), 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_synsets_have_their_canonical_classes() -> None:
    table = synset_index()
    assert sorted(table.values()) == list(range(1000))
    known = {"n01440764": 0, "n01484850": 2, "n02099601": 207, "n07753592": 954, "n15075141": 999}
    assert {name: table[name] for name in known} == known
    assert list(table) == sorted(table)


def test_labels_come_from_the_folder_even_for_a_subset() -> None:
    files = [Path("val/n15075141/a.jpg"), Path("val/n01440764/b.jpg"), Path("x/n15075141/c.png")]
    assert imagenet_labels(files) == [999, 0, 999]
    with pytest.raises(DataError, match="'cats' is no ImageNet-1k synset"):
        imagenet_labels([Path("val/cats/a.jpg")])


def folder_of(path: Path, count: int) -> Path:
    for i in range(count):
        sub = path / f"{i % 3}"
        sub.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (i % 256, i // 256, 0)).save(sub / f"{i:04d}.png")
    return path


def test_few_images_are_all_taken_in_sorted_order(tmp_path: Path) -> None:
    found = load_images(str(folder_of(tmp_path, 7)), HOW)
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 3, 6, 1, 4, 2, 5]
    assert found.labels is None
    assert found.pixels.shape == (7, 16, 16, 3) and found.pixels.dtype == np.uint8


def test_many_images_are_spread_over_the_folder(tmp_path: Path) -> None:
    found = load_images(str(folder_of(tmp_path, 200)), HOW)
    assert len(found.pixels) == LIMIT
    taken = found.pixels[:, 0, 0, 0].astype(int)
    assert len(set(taken.tolist())) == LIMIT
    assert [int((taken % 3 == rest).sum()) for rest in range(3)] == pytest.approx([21] * 3, abs=2)


def test_the_digest_follows_the_pixels(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 3)
    first = load_images(str(folder), HOW).digest()
    assert load_images(str(folder), HOW).digest() == first
    Image.new("RGB", (20, 20), (9, 9, 9)).save(folder / "0" / "0000.png")
    assert load_images(str(folder), HOW).digest() != first


def test_without_a_folder_what_ships_serves() -> None:
    own, other = load_images(None, HOW, digits), load_images(None, HOW)
    assert own.labels is not None and len(own.labels) == len(own.pixels) == 360
    assert other.labels is None and len(other.pixels) == 32


class FakeRunner:
    """Takes as long as it is told, on a clock of its own."""

    def __init__(self, clock: list[float], seconds: list[float], log: list[str], name: str) -> None:
        self.clock, self.seconds, self.log, self.name = clock, seconds, log, name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(self, image: Array) -> Mapping[str, Array]:
        self.log.append(f"{self.name}{int(image[0])}")
        self.clock[0] += self.seconds.pop(0)
        return {}


def test_runners_are_timed_in_turn_after_a_warm_up() -> None:
    clock, log = [0.0], []
    runners = {
        "a": FakeRunner(clock, [9.0, 9.0, 4.0, 6.0, 5.0], log, "a"),
        "b": FakeRunner(clock, [7.0, 7.0, 2.0, 2.0, 1.0], log, "b"),
    }
    batches = [{name: np.array([i]) for name in runners} for i in range(2)]
    seconds = interleave(runners, batches, rounds=3, clock=lambda: clock[0])
    assert " ".join(log) == "a0 b0 a1 b1 a0 b0 a1 b1 a0 b0"
    assert seconds == {"a": [4.0, 6.0, 5.0], "b": [2.0, 2.0, 1.0]}
    row = compare(seconds, "a", batch=8)
    assert row == {
        "batch": 8,
        "rounds": 3,
        "median_ms": {"a": 5000.0, "b": 2000.0},
        "speedup": {"b": 3.0},  # the median of 2, 3 and 5, not the ratio of the medians
    }
