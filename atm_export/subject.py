"""A model under a plan: what is exported, proven, measured, and built again from a finished run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from atm_export.config import RunConfig, exported_config
from atm_export.errors import ConfigError, OtherWeightsError, WeightsError
from atm_export.graph.traced import traced_graph
from atm_export.inputs import InputSpec, Pixels
from atm_export.methods.base import MergePolicy
from atm_export.methods.plan import Form, MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.model.calibrate import measured_r, paper_r
from atm_export.model.plan import exported_plan, plan_for
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.runs.manifest import Manifest

Progress = Callable[[str], None]
PAPER = "the paper's GFLOPs"


@dataclass(frozen=True)
class Subject:
    """A model with its config and what its blocks do.

    same_weights: the weights of the export; otherwise the shapes alone are right, good for counting
    and no more.
    """

    config: RunConfig
    model: LoadedModel
    plan: MergePlan
    same_weights: bool = True

    @property
    def policy(self) -> str:
        """What it merges by: adaptive, frozen, per-image or unmerged."""
        return self.plan.policy if self.plan.merges else "unmerged"

    @property
    def unmerged(self) -> MergePlan:
        return MergePlan.unmerged(len(self.plan.blocks))

    @property
    def input(self) -> InputSpec:
        """What the graph takes."""
        return self.model.input(uint8=self.config.uint8_input)

    def graph(self, plan: MergePlan, form: Form = "plain") -> ir.Model:
        """The FP32 graph of the model under `plan`, with its trace outputs; translated anew. form:
        the plain one where the plan has no such."""
        has = plan.has_form(form, self.model.backbone.tokens)
        return traced_graph(self.config, self.model, plan, form if has else "plain")

    def has_form(self, form: Form) -> bool:
        """Whether its plan can be written so."""
        return self.plan.has_form(form, self.model.backbone.tokens)

    def feed(self, pixels: Pixels) -> NDArray[Any]:
        """Pixels [k, H, W, C] as the graph takes them."""
        return self.input.feed(pixels)

    def tensor(self, pixels: Pixels) -> Tensor:
        """Pixels [k, H, W, C] as the eager model takes them."""
        return self.model.tensor(pixels)

    def tensors(self, pixels: Pixels, size: int) -> list[Tensor]:
        """The same in batches of `size`."""
        return [self.tensor(pixels[i : i + size]) for i in range(0, len(pixels), size)]


def subject_of(
    config: RunConfig,
    model: LoadedModel,
    calibration: Pixels,
    progress: Progress = lambda text: None,
) -> Subject:
    """The subject of an export; a frozen schedule is measured on `calibration`, or met by the
    paper's GFLOPs (see `schedule_from`)."""
    subject = Subject(config, model, plan_for(model.backbone, config.method))
    if config.method.policy is not MergePolicy.FROZEN:
        return subject
    if schedule_from(config) == PAPER:
        gflops = config.model.config.presets[config.method.preset or ""].gflops
        assert gflops is not None
        r = paper_r(model.backbone, subject.plan, gflops)
    else:
        progress(f"calibrating the frozen schedule on {len(calibration)} images")
        r = measured_r(model.backbone, subject.plan, subject.tensors(calibration, 8))
    return Subject(config, model, subject.plan.frozen(r))


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


def exported_subject(
    manifest: Manifest,
    where: str,
    weights: str | None = None,
    *,
    need_weights: bool = True,
) -> Subject:
    """The subject of a finished run. weights: where they are now; by default the export's place.

    Without need_weights, weights that are gone are replaced by random ones of the same shapes.
    Raises ManifestError, WeightsError.
    """
    config = exported_config(manifest.config, where)
    spec = config.model if weights is None else config.model.model_copy(update={"weights": weights})
    digest = manifest.weights.sha256
    try:
        model = load_model(spec)
        if model.weights["sha256"] != digest:
            raise OtherWeightsError(
                f"{spec.weights}: not the weights of this export (sha256 differs); "
                "give --weights FILE, or export again"
            )
    except WeightsError:
        if need_weights:
            raise
        model = load_model(spec.model_copy(update={"weights": "random"}))
    plan = exported_plan(model.backbone, config.method, manifest.method.document)
    return Subject(config, model, plan, model.weights["sha256"] == digest)


def fixed_tokens(subject: Subject) -> Tensor | None:
    """Tokens after each block [blocks] of a plan that decides no count at run time."""
    if subject.plan.adaptive:
        return None
    blank = subject.tensor(subject.input.blank())
    return run_reference(subject.model.backbone, subject.plan, blank).tokens_out[:, 0]
