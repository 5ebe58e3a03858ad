"""Golden vectors: pictures and the answers that the eager reference gives for them.

They travel in the run folder, so that any runtime on any machine can prove itself without PyTorch.
The pictures are photographs that ship (for the demo its digits) and drawn scenes, never the user's
images: a run folder may go where those must not.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from atm_export import photos
from atm_export.comparison import largest
from atm_export.inputs import RGB, Pixels
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import NotFollowed
from atm_export.model.backbone import Backbone, LoadedModel
from atm_export.model.reference import Trace, run_reference
from atm_export.pictures import read_rgb
from atm_export.preprocess import crop, sample
from atm_export.prove.follow import follow
from atm_export.prove.judging import noise_of
from atm_export.prove.margins import trace_margin
from atm_export.prove.tolerances import MARGIN
from atm_export.runs.golden import Answers, Golden, Picture
from atm_export.runs.tensors import packed

FILE = "golden.safetensors"
MOST_BYTES = 1_300_000
TRIES = 8
PICTURE = (400, 300)
PHOTOS = "photographs (CC0 or public domain) and drawn scenes"


@dataclass(frozen=True)
class Answer:
    """What the reference makes of pixels [B, H, W, C]: outputs [B, ...], the margin of its
    decisions (a cosine), and how far the outputs are from FP64 ones, in shares of what is allowed.
    file: what the pixels were read from.
    """

    pixels: Pixels
    outputs: Answers
    margin: float
    noise: float
    file: bytes = b""

    @property
    def firm(self) -> bool:
        """Whether every correct backend gives these outputs within the tolerance."""
        return self.margin >= MARGIN and self.noise <= 0.5


class Oracle:
    """The reference, in FP32, and in FP64 to tell how well conditioned an answer is."""

    def __init__(self, model: LoadedModel, plan: MergePlan) -> None:
        self.model, self.plan = model, plan
        self.exact = copy.deepcopy(model.backbone).double()

    def answer(self, pixels: Pixels, file: bytes = b"", *, noise: bool = True) -> Answer:
        """Run [B, H, W, C]; noise: measure it too (B = 1)."""
        image = self.model.tensor(pixels)
        trace = run_reference(self.model.backbone, self.plan, image)
        margin, miss = trace_margin(trace), 0.0
        if noise and margin >= MARGIN:
            miss = self._noise(image, trace)
        outputs = {n: value.numpy().astype(np.float32) for n, value in trace.outputs.items()}
        return Answer(pixels, outputs, margin, miss, file)

    def _noise(self, image: torch.Tensor, trace: Trace) -> float:
        """How far the outputs are from FP64 ones with the same choices, of what is allowed."""
        try:
            exact = follow(self.exact, self.plan, image.double(), trace.maps)[0].outputs
        except NotFollowed:
            return math.inf
        found = noise_of(trace, exact)
        return largest(
            float(found[spec.name].max()) / spec.tolerance.allowed for spec in trace.specs
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come in another order on another number of threads, and with them the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def golden_vectors(model: LoadedModel, plan: MergePlan) -> tuple[bytes, dict[str, Any]]:
    """The golden file's bytes (see `runs.golden.Golden`), and what the manifest says of it."""
    how, oracle = model.preprocessing, Oracle(model, plan)
    size = max(1, min(4, MOST_BYTES // model.input().blank().size))
    alone = _firm((oracle.answer(pixels) for pixels in _candidates(model)), size)
    images = np.concatenate([answer.pixels for answer in alone])
    sizes = range(len(images), 0, -1)
    batch = _firm((oracle.answer(images[:n], noise=False) for n in sizes), 1)[0]
    golden = Golden(
        images=images,
        alone={n: np.concatenate([answer.outputs[n] for answer in alone]) for n in batch.outputs},
        batch=batch.outputs,
        picture=_picture(oracle) if how.pictured else None,
    )
    terms = PHOTOS if model.own_images is None else model.own_images().terms
    return packed(golden.arrays()), _facts(len(images), len(batch.pixels), terms, model.backbone)


def _picture(oracle: Oracle) -> Picture:
    """A drawn scene as a JPEG file."""
    how = oracle.model.preprocessing
    jpegs = (_jpeg(scene(PICTURE, 1000 + seed)) for seed in range(TRIES // 2))
    answers = (oracle.answer(crop(read_rgb(jpeg), how)[None], jpeg) for jpeg in jpegs)
    firm = _firm(answers, 1)[0]
    return Picture(np.frombuffer(firm.file, np.uint8), firm.pixels[0], firm.outputs)


def _facts(images: int, batch: int, source: str, backbone: Backbone) -> dict[str, Any]:
    tolerance: dict[str, Any] = {}
    for spec in backbone.outputs:
        tolerance[spec.name] = spec.tolerance.allowed
        tolerance[f"{spec.name}_reason"] = spec.tolerance.reason
        tolerance[f"picture_{spec.name}"] = spec.tolerance.picture
    return {
        "file": FILE,
        "source": source,
        "images": images,
        "batch": batch,
        "reference": "PyTorch, eager, FP32",
        "tolerance": {
            **tolerance,
            "picture_grey_levels": 1,
            "picture_reason": "another JPEG decoder or resize may round a pixel the other way",
        },
    }


def _firm(answers: Iterator[Answer], count: int) -> list[Answer]:
    """The first `count` firm answers; where none is, the one with the largest margin."""
    found: list[Answer] = []
    best: Answer | None = None
    for answer in answers:
        if answer.firm:
            found.append(answer)
        if best is None or answer.margin > best.margin:
            best = answer
        if len(found) == count:
            break
    assert best is not None
    return found or [best]


def _candidates(model: LoadedModel) -> Iterator[Pixels]:
    """Real pictures and scenes by turns, [1, H, W, C]."""
    how = model.preprocessing
    for i, picture in enumerate(_pictures(model)[: TRIES // 2]):
        yield sample(picture, how)[None]
        yield sample(scene(how.size[::-1], i), how)[None]


def _pictures(model: LoadedModel) -> Sequence[Image.Image]:
    """Pictures that may go anywhere with a run folder: the model's own, else photographs."""
    if model.own_images is not None:
        return model.own_images().images
    return [view.image() for view in photos.VIEWS if photos.unconditional(view.photo)]


def scene(size: tuple[int, int], seed: int) -> Image.Image:
    """A drawn picture (width, height): a sky of two colours, soft shapes, a little grain."""
    draw = np.random.default_rng(seed)
    width, height = size
    top, bottom = draw.integers(0, 256, (2, RGB))
    ramp = np.linspace(0, 1, height)[:, None, None]
    sky = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (height, width, RGB))
    image = Image.fromarray(sky.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = draw.integers(0, (width, height)).tolist()
        wide, high = draw.integers(8, (max(9, width // 2), max(9, height // 2))).tolist()
        shape = pen.ellipse if draw.integers(2) else pen.rectangle
        shape((x, y, x + wide, y + high), fill=tuple(draw.integers(0, 256, RGB).tolist()))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), np.int16)
    grain = draw.integers(-6, 7, soft.shape, dtype=np.int16)
    return Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=2)
    return buffer.getvalue()
