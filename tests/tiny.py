"""Small vision transformers with random weights, and plans whose thresholds fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from atm_export.inputs import Preprocessing
from atm_export.methods import methods
from atm_export.methods.base import MethodSettings, ModelShape
from atm_export.methods.bipartite.matching import GRID
from atm_export.methods.bipartite.rule import BlockMerge
from atm_export.methods.bipartite.terms import Grouping
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Backbone, LoadedModel
from atm_export.model.reference import run_reference
from atm_export.model.vit import TimmBackbone
from atm_export.model.weights import randomize
from atm_export.prove.margins import trace_margin
from atm_export.prove.tolerances import MARGIN
from atm_export.tasks.base import OutputSpec
from atm_export.tasks.classify import Classify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 48  # 6 x 6 patches of 8 x 8


def tiny_vit(
    *, distilled: bool = False, positions: bool = True, seed: int = 0, **options: Any
) -> TimmBackbone:
    """A ViT of 4 blocks on 36 patches, 7 classes; without positions, equal patches stay equal."""
    values: dict[str, Any] = {
        "img_size": SIZE,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 4,
        "num_heads": 3,
        "num_classes": 7,
    }
    kind = VisionTransformerDistilled if distilled else VisionTransformer
    model = kind(**(values | options))
    randomize(model, seed)
    if not positions:
        with torch.no_grad():
            model.pos_embed.zero_()
    return TimmBackbone(model.eval().requires_grad_(False), "tiny")


@cache
def class_token_vit() -> TimmBackbone:
    """The usual one; shared, so never to be changed."""
    return tiny_vit()


def random_images(batch: int, seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    """Normalised noise, [batch, 3, H, W]."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def planned(
    method: MethodSettings, depth: int = 12, *, pooled: bool = False, proportional: bool = True
) -> MergePlan:
    """The plan of a method for a model of `depth` blocks."""
    shape = ModelShape(depth, 197, 1, pooled, proportional)
    return methods[method.name].plan(method, shape)


def no_merges(backbone: TimmBackbone) -> MergePlan:
    """The unmerged plan."""
    return MergePlan.unmerged(len(backbone.parts()))


def groupings(backbone: TimmBackbone) -> list[Grouping | None]:
    """3/4 of the blocks alternate, the rest by size; no merge in the last unless the head pools."""
    depth = len(backbone.parts())
    kinds: list[Grouping | None] = ["alternate"] * (3 * depth // 4 - (not backbone.pooled))
    kinds += ["size"] * (depth - len(kinds) - 1)
    return [*kinds, "size" if backbone.pooled else None]


def threshold_plan(backbone: TimmBackbone, theta: float) -> MergePlan:
    """ATM with one threshold everywhere; -2 merges all that can."""
    rules = tuple(kind and BlockMerge(kind, theta=theta) for kind in groupings(backbone))
    return MergePlan(rules, proportional=True)


def adaptive_plan(
    backbone: TimmBackbone,
    share: float = 0.3,
    proportional: bool = True,
    first: float | None = None,
) -> MergePlan:
    """Thresholds that about `share` of the pairs of noise images pass, halfway between two of them.

    Fitted block after block, since each merge changes what the next block sees. first: the
    threshold of block 1, where it is given.
    """
    images = random_images(4, seed=100, size=backbone.image_size)
    rules = list(threshold_plan(backbone, 2.0).blocks)
    for i, rule in enumerate(rules):
        if rule is None:
            continue
        if i == 0 and first is not None:
            rules[i] = replace(rule, theta=first)
            continue
        plan = MergePlan(tuple(rules), proportional)
        decision = run_reference(backbone, plan, images).decisions[i][0]
        assert decision is not None
        ranked = decision.pairs.similarity.flatten().sort(descending=True).values
        cut = max(1, int(share * len(ranked)))
        rules[i] = replace(rule, theta=float(ranked[cut - 1] + ranked[cut]) / 2 / GRID)
    return MergePlan(tuple(rules), proportional)


def frozen_plan(backbone: TimmBackbone, r: Sequence[int], proportional: bool = True) -> MergePlan:
    """Fixed merges per block in ATM's groups."""
    return replace(threshold_plan(backbone, 0.0), proportional=proportional).frozen(r)


def tome_plan(backbone: TimmBackbone, r: int, proportional: bool = True) -> MergePlan:
    """ToMe: alternate groups and the same r in every block."""
    rule = BlockMerge("alternate", r=r)
    return MergePlan((rule,) * len(backbone.parts()), proportional)


def decided_images(backbone: TimmBackbone, plan: MergePlan, batch: int) -> Tensor:
    """Noise on which the reference decides by more than FP32 rounding, so that backends agree."""
    for seed in range(200):
        images = random_images(batch, seed, backbone.image_size)
        if trace_margin(run_reference(backbone, plan, images)) >= MARGIN:
            return images
    raise AssertionError("no batch is decided with a margin")


def spec_of(classes: int) -> OutputSpec:
    """The logits of a classifier."""
    (spec,) = Classify().outputs(SimpleNamespace(classes=classes, patches=1))
    return spec


def loaded(backbone: Backbone, how: Preprocessing) -> LoadedModel:
    """A backbone as a family hands it out; its weights are random."""
    weights = {"source": "random", "sha256": "0" * 64, "meaningless_accuracy": True}
    return LoadedModel("tiny", backbone, how, weights)
