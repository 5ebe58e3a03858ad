"""The parity ladder: eager reference -> export-friendly twin -> ONNX in ONNX Runtime.

Every rung is compared with the reference, never with the rung below it: token counts per block,
which tokens merged, every output. The graph that ships and the traced one must agree too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import torch

from atm_export.backends.onnxruntime import OnnxRuntimeRunner
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.preprocess import Preprocessing, normalize
from atm_export.prove.compare import compare, measure
from atm_export.prove.inputs import Pixels, cases
from atm_export.prove.judging import judge, own_noise, with_margin
from atm_export.prove.results import Difference, LadderResult, Rung
from atm_export.prove.variants import variants
from atm_export.rewrite.twin import Twin

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What climbs the ladder: traced graph, shipped graph, and the model they come from."""

    model: LoadedModel
    plan: MergePlan
    traced: onnx.ModelProto
    shipped: onnx.ModelProto
    uint8_input: bool


def climb(subject: Subject, images: Pixels, progress: Progress = lambda text: None) -> LadderResult:
    """Compare every rung on every input; `images` [k, H, W, 3] uint8, real ones."""
    rungs: list[Rung] = []
    differences: list[Difference] = []
    margins: dict[str, float] = {}
    undecided: dict[str, float] = {}
    how = subject.model.preprocessing
    for label, plan, traced, shipped in variants(subject.plan, subject.traced, subject.shipped):
        chosen = list(cases(images))
        if label:
            chosen = [case for case in chosen if case.kind in ("images", "flat")]
        twin = Twin(subject.model.backbone, plan).eval() if plan.merges else None
        with OnnxRuntimeRunner(traced) as onnx_traced, OnnxRuntimeRunner(shipped) as onnx_shipped:
            for case in chosen:
                name = f"{label}{case.kind}, batch {case.batch}"
                progress(name)
                pixels, trace, margins[name] = with_margin(subject.model, plan, case)
                feed = (
                    pixels
                    if subject.uint8_input
                    else normalize(pixels, subject.model.preprocessing)
                )
                out = onnx_traced.run(feed)
                told = [out["tokens_per_block"], out["token_maps"]]
                results = [("onnx", out, told)]
                if not label or case.batch == 1:  # the same operators at every threshold
                    results.append(("shipped onnx", onnx_shipped.run(feed), told))
                    if twin is not None:
                        results.insert(0, ("twin", *_run_twin(twin, pixels, how)))
                for rung, outputs, (counts, maps) in results:
                    judged = judge(subject.model, plan, pixels, trace, margins[name], maps)
                    if judged is not trace:
                        undecided[f"{rung}: {name}"] = margins[name]
                    rungs.append(measure(rung, name, judged, outputs))
                    noise = partial(own_noise, subject.model, plan, pixels, judged)
                    found = compare(judged, outputs, counts, maps, noise)
                    if found:
                        differences.append(Difference(rung, name, found))
    specs = subject.model.backbone.outputs
    return LadderResult(tuple(rungs), tuple(differences), margins, undecided, specs)


@torch.inference_mode()
def _run_twin(twin: Twin, pixels: Pixels, how: Preprocessing) -> tuple[dict[str, Any], list[Any]]:
    answer, counts, maps = twin(torch.from_numpy(normalize(pixels, how)))
    outputs = {name: value.numpy() for name, value in twin.backbone.named(answer).items()}
    return outputs, [counts.numpy(), maps.numpy()]
