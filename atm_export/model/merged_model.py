"""A model that merges in PyTorch, without an export: to train, to fine-tune, to look at."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.methods import USUAL_METHOD, methods
from atm_export.methods.base import MergePolicy, MethodSettings
from atm_export.methods.flat import required_settings
from atm_export.methods.given import settings_of
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Answer, Backbone
from atm_export.model.plan import plan_for
from atm_export.model.reference import Trace, answer_of, run_blocks, run_reference
from atm_export.model.vit import TimmBackbone
from atm_export.model_configs import find_preset, load_model_config, model_names


class MergedModel(nn.Module):
    """Image [B, C, H, W], normalised, to what the model answers, by the eager reference's own
    blocks: the same decisions and numbers as every export of the same settings.

    Parameters, buffers and submodules are those of the model itself under their own names, so that
    a `state_dict` fits both, and training one trains the other. Matching and merging are computed
    in FP32 under autocast too. `torch.compile` compiles attention and MLP for any number of tokens;
    what decides stays eager.
    """

    _model: nn.Module
    _backbone: Backbone

    def __init__(self, model: nn.Module, backbone: Backbone, method: MethodSettings) -> None:
        super().__init__()
        for held in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[held] = model.__dict__[held]
        self.__dict__.update(_model=model, _backbone=backbone)  # no submodules: they hold the same
        self.method = method
        self.plan: MergePlan = plan_for(backbone, method)
        if method.policy is MergePolicy.FROZEN and self.plan.adaptive:
            raise ConfigError(
                "merge=frozen: counts are frozen at export, from images; in PyTorch give tome's r"
            )
        self._acting = _acting(self.plan, backbone)
        self.training = model.training

    @torch.compiler.disable(recursive=False)
    def forward(self, image: Tensor) -> Answer:
        if self.plan.per_image and image.shape[0] > 1:
            return _joined([self._together(one) for one in image.split(1)])
        return self._together(image)

    @torch.compiler.disable(recursive=False)
    def _together(self, image: Tensor) -> Answer:
        """The answer of a batch that shares its counts."""
        # What the rules make themselves belongs where the image is.
        with nullcontext() if image.device.type == "cpu" else image.device:
            x = self._backbone.embed(image)
            done = run_blocks(self._backbone, self._acting, x, margins=False)
        return answer_of(self._backbone, done._replace(sizes=done.sizes.to(done.tokens.dtype)))

    def trace(self, image: Tensor) -> Trace:
        """What happens to `image` in evaluation: answers, and for each block tokens before and
        after, where each embedded token is (`maps` [blocks, B, N0]; -1: dropped), and decisions."""
        training = self.training
        self.eval()
        try:
            with nullcontext() if image.device.type == "cpu" else image.device:
                return run_reference(self._backbone, self.plan, image)
        finally:
            self.train(training)

    def unmerged(self) -> nn.Module:
        """The model itself, as it was given, with the weights that it has now."""
        return self._model

    def train(self, mode: bool = True) -> MergedModel:
        super().train(mode)
        self._model.training = mode
        return self

    def extra_repr(self) -> str:
        return methods[self.method.name].summary(self.method, self.plan, None)


def _acting(plan: MergePlan, backbone: Backbone) -> MergePlan:
    """The plan without a last reduction whose tokens no head reads."""
    last = plan.blocks[-1]
    unread = backbone.head_rows is not None and last is not None and last.spares_tokens
    return replace(plan, blocks=(*plan.blocks[:-1], None)) if unread else plan


def _joined(answers: list[Answer]) -> Answer:
    """One answer of several, image after image."""
    each = [answer if isinstance(answer, tuple) else (answer,) for answer in answers]
    outputs = tuple(torch.cat(values) for values in zip(*each, strict=True))
    return outputs if isinstance(answers[0], tuple) else outputs[0]


def merged(
    model: nn.Module, method: str | None = None, *, preset: str | None = None, **settings: Any
) -> MergedModel:
    """`model` (any timm VisionTransformer that exports, or a `Backbone`) with its tokens reduced.

    preset: MODEL-PRESET, as `atm-export list MODEL` names it: `deit_s-a2-3.23`. method and
    settings: as --method and --set give them, `merged(model, "tome", r=8)`; on top of a preset's.
    Without any: ATM at its usual operating point. The model itself stays as it is, and shares its
    weights; it is put neither into training nor into evaluation. Raises ConfigError for settings
    that the method does not take, UnsupportedModelError for a model whose tokens cannot be merged.
    """
    start = _Start() if preset is None else _start(preset)
    if preset is not None and method not in (None, start.method):
        raise ConfigError(f"preset {preset} is one of method {start.method}, not of {method}")
    name = start.method if method is None else method
    usual = preset is None and name == USUAL_METHOD
    values = {**(methods[name].usual if usual else start.settings), **settings}
    required = required_settings(methods[name].settings)
    if missing := [each for each in required if each not in values]:
        raise ConfigError(f"method {name} needs {', '.join(missing)}: give them, or a preset")
    chosen = settings_of(name, values, preset=None if settings else start.preset)
    backbone = model if isinstance(model, Backbone) else _backbone(model, start.proportional)
    return MergedModel(model, backbone, chosen)


@dataclass(frozen=True)
class _Start:
    """What a preset says: its name, method, settings, and whether its model attends in
    proportion."""

    preset: str | None = None
    method: str = USUAL_METHOD
    settings: Mapping[str, Any] = field(default_factory=dict)
    proportional: bool = True


def _start(given: str) -> _Start:
    """The preset that MODEL-PRESET names."""
    fitting = [name for name in model_names() if given.startswith(f"{name}-")]
    if not fitting:
        raise ConfigError(
            f"preset {given}: give MODEL-PRESET, as deit_s-a2-3.23; models are "
            f"{', '.join(model_names())}"
        )
    model = max(fitting, key=len)
    config, name = load_model_config(model), given.removeprefix(f"{model}-")
    preset = find_preset(name, model, config)
    return _Start(name, preset.method, preset.settings, config.proportional)


def _backbone(model: nn.Module, proportional: bool) -> Backbone:
    backbone = TimmBackbone(model, type(model).__name__, proportional)
    for i, block in enumerate(backbone.model.blocks, 1):
        if block.attn.attn_drop.p > 0:
            raise UnsupportedModelError(
                f"block {i} drops attention weights in training (attn_drop "
                f"{block.attn.attn_drop.p:g}), which merging does not; build the model with 0"
            )
    return backbone
