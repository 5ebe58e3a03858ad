"""What of a timm model's final tokens is one vector: as the model has it, or as --pool says."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError

POOLS = ("token", "avg", "avgmax", "max", "map")
WORDS = {"token": "the class token", "avg": "the mean of all patches", "map": "attention pooling"}


def choose_pool(model: VisionTransformer, spec: ModelSpec) -> bool:
    """Pool by --pool, whose norms and weights stay the model's own; returns whether that is another
    pooling than its own. ConfigError for what the model lacks."""
    if spec.pool in (None, model.global_pool):
        return False
    if spec.pool == "map":
        _refuse(spec, "has no attention pooling", "avg")
    if spec.pool == "token" and not model.has_class_token:
        _refuse(spec, "has no class token", "avg")
    model.global_pool, model.attn_pool, model.pool_include_prefix = spec.pool, None, False
    return True


def pooled(model: VisionTransformer, tokens: Tensor, sizes: Tensor | None) -> Tensor:
    """Final tokens [B, n, D] as one vector [B, D], a merged token counting as many times as it
    holds patches (sizes [B, n, 1]; None: all 1)."""
    if not model.pool_include_prefix:
        tokens = tokens[:, model.num_prefix_tokens :]
        sizes = None if sizes is None else sizes[:, model.num_prefix_tokens :]
    if model.attn_pool is not None:
        mask = None if sizes is None else sizes.log().transpose(1, 2).unsqueeze(1)
        return model.attn_pool(tokens, attn_mask=mask)
    mean = mean_of(tokens, sizes)
    if model.global_pool == "avg":
        return mean
    peak = tokens.amax(dim=1)
    return peak if model.global_pool == "max" else 0.5 * (peak + mean)


def mean_of(tokens: Tensor, sizes: Tensor | None) -> Tensor:
    """The mean of the patches that tokens [B, n, D] of sizes [B, n, 1] hold."""
    if sizes is None:
        return tokens.mean(dim=1)
    return (tokens * sizes).sum(dim=1) / sizes.sum(dim=1)


def _refuse(spec: ModelSpec, why: str, instead: str) -> None:
    raise ConfigError(
        f"--pool {spec.pool}: {spec.name} {why}; give --pool {instead}, or leave it out"
    )
