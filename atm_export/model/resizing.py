"""Another image size for a timm VisionTransformer, and the resize that belongs to a crop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from atm_export.errors import ConfigError
from atm_export.inputs import resize_of


@dataclass(frozen=True)
class Resampling:
    """How position embeddings are interpolated; as timm does, where nothing is said."""

    mode: str = "bicubic"
    antialias: bool = True


TIMMS = Resampling()


def take_images_of(model: VisionTransformer, size: int, name: str, how: Resampling = TIMMS) -> None:
    """Make `model` take images of size x size; ConfigError for a size that its patches do not
    fill."""
    patch = model.patch_embed.patch_size
    if any(size % side or size < 2 * side for side in patch):
        raise ConfigError(
            f"--image-size {size}: {name} takes multiples of {patch[0]} from {2 * patch[0]}"
        )
    before, grid = model.pos_embed.detach(), model.patch_embed.grid_size
    model.set_input_size(img_size=(size, size))
    prefix = before.shape[1] - grid[0] * grid[1]
    patches = before[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)
    patches = F.interpolate(
        patches,
        size=model.patch_embed.grid_size,
        mode=how.mode,
        antialias=how.antialias,
        align_corners=False,
    )
    resized = torch.cat([before[:, :prefix], patches.flatten(2).transpose(1, 2)], dim=1)
    model.pos_embed = nn.Parameter(resized, requires_grad=False)


def crop_share(crop: tuple[int, int], resized: tuple[int, int]) -> float:
    """The `crop_pct` with which a crop is cut from an image that was resized to `resized`;
    ConfigError where no share does it."""
    for of in (resized[0], resized[0] + 0.5):  # half a pixel more, where the division rounds down
        if resize_of(crop, crop[0] / of) == resized:
            return crop[0] / of
    raise ConfigError(f"a crop of {crop} from an image of {resized} has another shape")
