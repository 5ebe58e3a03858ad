"""Which timm models embed, and which of their vectors that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from atm_export.config import ModelSpec


@dataclass(frozen=True)
class Embedding:
    """projected: the model's head makes it, as CLIP's does; else what comes before the head.
    normalize: of length 1."""

    projected: bool = False
    normalize: bool = False


def embedding_of(
    model: VisionTransformer, spec: ModelSpec, architecture: str, cfg: Any
) -> Embedding | None:
    """What is embedded, where that is the task."""
    # CLIP's image towers project to what its texts are compared with, and have no classes.
    fine_tuned = "ft_in" in (cfg.tag or "") or "num_classes" in spec.config.options
    projected = "_clip_" in architecture and not fine_tuned and model.num_classes > 0
    if spec.task == "classify" or (spec.task == "auto" and model.num_classes and not projected):
        return None
    return Embedding(projected, spec.normalize)


def notes_of(model: VisionTransformer, embeds: Embedding | None) -> tuple[str, ...]:
    """What a report should say of the answer."""
    if embeds is None:
        return () if model.num_classes else ("no classifier: logits are the pooled features",)
    what = "the head's projection" if embeds.projected else "the features before a classifier"
    return (f"embedding: {what}{', of length 1' if embeds.normalize else ''}",)
