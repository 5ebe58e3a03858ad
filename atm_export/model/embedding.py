"""Which timm models embed, and which of their vectors that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from atm_export.config import ModelSpec
from atm_export.model.pooling import WORDS, choose_pool


@dataclass(frozen=True)
class Embedding:
    """projected: the model's head makes it, as CLIP's does; else what comes before the head.
    normalize: of length 1. pool: what of the tokens it is, where --pool says another thing than
    the model."""

    projected: bool = False
    normalize: bool = False
    pool: str | None = None


def embedding_of(
    model: VisionTransformer, spec: ModelSpec, architecture: str, cfg: Any
) -> Embedding | None:
    """What is embedded, where that is the task; then the model pools as --pool says. A projection
    is of the model's own pooling alone."""
    # CLIP's image towers project to what its texts are compared with, and have no classes.
    fine_tuned = "ft_in" in (cfg.tag or "") or "num_classes" in spec.config.options
    projected = "_clip_" in architecture and not fine_tuned and model.num_classes > 0
    if spec.task in ("classify", "dense") or (
        spec.task == "auto" and model.num_classes and not projected
    ):
        return None
    return chosen_embedding(model, spec, projected)


def chosen_embedding(
    model: VisionTransformer, spec: ModelSpec, projected: bool = False
) -> Embedding:
    """The same where the task is to embed."""
    other = choose_pool(model, spec)
    return Embedding(projected and not other, spec.normalize, spec.pool if other else None)


def notes_of(model: VisionTransformer, embeds: Embedding | None) -> tuple[str, ...]:
    """What a report should say of the answer."""
    if embeds is None:
        return () if model.num_classes else ("no classifier: logits are the pooled features",)
    pool = WORDS.get(model.global_pool, f"pooled by {model.global_pool}")
    what = f"the features before a classifier, {pool}"
    if embeds.projected:
        what = f"the head's projection of {pool}"
    return (f"embedding: {what}{', of length 1' if embeds.normalize else ''}",)
