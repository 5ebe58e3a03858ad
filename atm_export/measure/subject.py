"""From a run folder back to the model, the plan and the graph that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from atm_export.config import RunConfig, exported_config
from atm_export.errors import WeightsError
from atm_export.graph.traced import traced_graph
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.model.plan import exported_plan
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.preprocess import Preprocessing, normalize
from atm_export.runs.reading import Run

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Subject:
    """A run with its eager model and plan.

    same_weights: the model holds the weights of the export; otherwise it has the right shapes
    alone, good for counting and no more.
    """

    run: Run
    config: RunConfig
    model: LoadedModel
    plan: MergePlan
    same_weights: bool

    @property
    def preprocessing(self) -> Preprocessing:
        return preprocessing_of(self.run.manifest)

    @cached_property
    def fixed_tokens(self) -> Tensor | None:
        """Tokens after each block [blocks] of a plan that decides nothing at run time."""
        if self.plan.adaptive:
            return None
        blank = torch.zeros(1, 3, *self.model.backbone.image_size)
        return run_reference(self.model.backbone, self.plan, blank).tokens_out[:, 0]

    @property
    def unmerged(self) -> MergePlan:
        return MergePlan.unmerged(len(self.plan.blocks))

    def graph(self, plan: MergePlan) -> onnx.ModelProto:
        """The FP32 graph of the same model and interface with a plan, all outputs on."""
        return traced_graph(self.config, self.model, plan)

    def feed(self, pixels: Pixels) -> NDArray[Any]:
        """uint8 [B, H, W, 3] as the exported graph wants it."""
        return pixels if self.config.uint8_input else normalize(pixels, self.preprocessing)

    def tensor(self, pixels: Pixels) -> Tensor:
        """uint8 [B, H, W, 3] as the eager model wants it."""
        return torch.from_numpy(normalize(pixels, self.preprocessing))


def load_subject(run: Run, weights: str | None = None, *, need_weights: bool = True) -> Subject:
    """Load the model of a run; `weights` replaces the place where the export found them.

    Without need_weights, weights that are gone are replaced by random ones of the same shapes.
    """
    config = exported_config(run.manifest, f"{run.folder}/manifest.json")
    spec = config.model if weights is None else config.model.model_copy(update={"weights": weights})
    digest = run.manifest["weights"]["sha256"]
    try:
        model = load_model(spec)
        if model.weights["sha256"] != digest:
            raise WeightsError(
                f"{spec.weights}: not the weights of this export (sha256 differs); "
                "give --weights FILE, or export again"
            )
    except WeightsError:
        if need_weights:
            raise
        model = load_model(spec.model_copy(update={"weights": "random"}))
    same = model.weights["sha256"] == digest
    plan = exported_plan(model.backbone, config.method, run.manifest["method"])
    return Subject(run, config, model, plan, same)


def preprocessing_of(manifest: Mapping[str, Any]) -> Preprocessing:
    """The manifest's preprocessing."""
    facts = manifest["preprocessing"]
    return Preprocessing(
        (facts["size"][0], facts["size"][1]),
        facts["crop_pct"],
        facts["interpolation"],
        tuple(facts["mean"]),
        tuple(facts["std"]),
        facts["crop_mode"],
    )
