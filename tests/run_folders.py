"""Run folders for the tests of what comes after an export: written as `pipeline` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from atm_export import pipeline
from atm_export.backends.base import GRAPH
from atm_export.choice import Choice
from atm_export.graph.optimize import with_outputs
from atm_export.inputs import Preprocessing
from atm_export.measure.data.images import ImageSet
from atm_export.measure.export import measure
from atm_export.measure.insight import study
from atm_export.model.backbone import LoadedModel
from atm_export.model.plan import plan_for
from atm_export.model.zoo import load_model
from atm_export.prove.results import LadderResult
from atm_export.report.facts import shipped_outputs
from atm_export.resolving import resolve
from atm_export.runs.writing import WorkFolder, working
from atm_export.subject import Subject
from atm_export.translation import translate
from tests.exports import VARIANTS, exported
from tests.shared_data import shared
from tests.tiny import MEAN, SIZE, STD

LABELS = ("no", "one", "two", 'th"ree', "four", "five", "six")


def tiny_run(out: Path, variant: str, merge: str = "adaptive", **options: Any) -> Path:
    """A run of one of the tiny models, 48 x 48, 7 classes; its parity is tested elsewhere. options:
    `Choice`'s."""
    made = exported(variant)
    uint8 = VARIANTS[variant].uint8
    config = resolve(Choice(model="demo", merge=merge, uint8_input=uint8, **options))
    how = Preprocessing((SIZE, SIZE), 0.9, "bicubic", MEAN, STD)
    digest = {"source": "random", "sha256": "0" * 64, "meaningless_accuracy": True}
    model = LoadedModel("tiny", made.backbone, how, digest, LABELS)
    subject = Subject(config, model, made.plan)
    with working(out, "key") as work:
        write(subject, with_outputs(made.traced, shipped_outputs(subject)), work, out)
    return out


def real_run(out: Path, **options: Any) -> Path:
    """A run of a real model (`Choice`'s options), without the ladder and the measurements."""
    config = resolve(Choice(**options))
    model = load_model(config.model)
    subject = Subject(config, model, plan_for(model.backbone, config.method))
    with working(out, "key") as work:
        shipped = translate(subject, work, lambda text: None).shipped
        write(subject, shipped, work, out)
    return out


def _noise(model: LoadedModel) -> ImageSet:
    shape = model.input().blank(2).shape
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return ImageSet(pixels, "noise")


def write(subject: Subject, shipped: ir.Model, work: WorkFolder, out: Path) -> None:
    """The pipeline's end, with nothing compared."""
    images = _noise(subject.model)
    proof = LadderResult((), (), specs=subject.model.backbone.outputs)
    report = pipeline.facts_of(subject, images, proof) | measure(subject, images)
    tensors = subject.tensors(images.pixels, 2)[0]
    report |= study(subject.model.backbone, subject.plan, tensors)[0]
    pipeline.write(subject, {GRAPH: shipped}, report, "", work, out)


def deit_t_run(out: Path) -> Path:
    """DeiT-T with real weights; skips where they are absent."""
    weights = shared("data", "weights", "deit_tiny_patch16_224.safetensors")
    return real_run(out, model="deit_t", weights=str(weights))
