"""One export: what is exported, how it merges, and the images that it is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from atm_export.config import RunConfig
from atm_export.errors import ConfigError
from atm_export.graph.traced import traced_graph
from atm_export.measure.data.images import ImageSet
from atm_export.methods.base import MergePolicy
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.model.calibrate import measured_r, paper_r
from atm_export.model.plan import plan_for
from atm_export.preprocess import normalize

Progress = Callable[[str], None]
PAPER = "the paper's GFLOPs"


@dataclass(frozen=True)
class Job:
    """What the stages of an export share. `graphs`: translations made so far."""

    config: RunConfig
    model: LoadedModel
    plan: MergePlan
    images: ImageSet
    graphs: dict[MergePlan, onnx.ModelProto] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def policy(self) -> str:
        """What the run merges by: adaptive, frozen, per-image or unmerged."""
        if not self.plan.merges:
            return "unmerged"
        if self.plan.per_image:
            return "per-image"
        return "adaptive" if self.plan.adaptive else "frozen"

    @property
    def unmerged(self) -> MergePlan:
        return MergePlan.unmerged(len(self.plan.blocks))

    def graph(self, plan: MergePlan) -> onnx.ModelProto:
        """The FP32 graph of the model under `plan` with its trace outputs; translated once."""
        if plan not in self.graphs:
            self.graphs[plan] = traced_graph(self.config, self.model, plan)
        return self.graphs[plan]

    def feed(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Pixels [k, H, W, 3] as the graph wants them."""
        if self.config.uint8_input:
            return pixels
        return normalize(pixels, self.model.preprocessing)

    def tensors(self, pixels: NDArray[np.uint8], size: int) -> list[Tensor]:
        """Pixels [k, H, W, 3] as the eager model wants them, in batches of `size`."""
        how = self.model.preprocessing
        return [
            torch.from_numpy(normalize(pixels[i : i + size], how))
            for i in range(0, len(pixels), size)
        ]


def schedule_from(config: RunConfig) -> str:
    """What a frozen schedule comes from; ConfigError where the user's images are there to prove on,
    not to calibrate on, and the paper gives no GFLOPs."""
    if config.calibrate is not None:
        return "the images to calibrate on"
    preset = config.model.config.presets.get(config.method.preset or "")
    if preset is not None and preset.gflops is not None:
        return PAPER
    if config.images is not None:
        raise ConfigError(
            "--merge frozen needs images to calibrate on (--calibrate DIR), or a preset whose "
            "GFLOPs the paper gives"
        )
    return "the images that ship"


def plan_job(
    config: RunConfig,
    model: LoadedModel,
    images: ImageSet,
    calibration: ImageSet,
    progress: Progress = lambda text: None,
) -> Job:
    """The job of a config; a frozen schedule is measured on `calibration`, or met by the paper's
    GFLOPs (see `schedule_from`)."""
    backbone, method = model.backbone, config.method
    job = Job(config, model, plan_for(backbone, method), images)
    if method.policy is not MergePolicy.FROZEN:
        return job
    if schedule_from(config) == PAPER:
        gflops = config.model.config.presets[method.preset or ""].gflops
        assert gflops is not None
        r = paper_r(backbone, job.plan, gflops)
    else:
        progress(f"calibrating the frozen schedule on {len(calibration.pixels)} images")
        r = measured_r(backbone, job.plan, job.tensors(calibration.pixels, 8))
    return Job(config, model, job.plan.frozen(r), images)
