"""What a model takes: its input's name, shape and type, and how pixels become it.

A family says its preprocessing: height and width, and as many means as there are channels. All else
follows. Nothing here imports more than NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import ConfigError, DataError

IMAGE = "image"
BATCH = "batch"
GREY, RGB = 1, 3  # channels
PICTURED = (GREY, RGB)  # what a picture file can become
MOST_CHANNELS = 1024
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
CROP_MODES = ("center", "squash")

Array = NDArray[Any]
Pixels = NDArray[np.uint8]


def resize_of(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Height and width before the crop, of which `size` is the share `crop_pct`."""
    return math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)


@dataclass(frozen=True)
class Preprocessing:
    """Input size (height, width), resize rule and normalisation (mean and std of 0..1 pixels, one
    of each a channel). ConfigError for what cannot be meant."""

    size: tuple[int, int]
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"interpolation '{self.interpolation}' is not one of {', '.join(INTERPOLATIONS)}"
            )
        if self.crop_mode not in CROP_MODES:
            raise ConfigError(f"crop mode '{self.crop_mode}' is not one of {', '.join(CROP_MODES)}")
        if len(self.mean) != len(self.std) or not 1 <= len(self.mean) <= MOST_CHANNELS:
            raise ConfigError(
                f"mean has {len(self.mean)} values and std {len(self.std)}: give one of each a "
                f"channel, {MOST_CHANNELS} at most"
            )

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def pictured(self) -> bool:
        """Whether a picture file can become an input: grey or RGB."""
        return self.channels in PICTURED

    @property
    def resize(self) -> tuple[int, int]:
        """Height and width that the image covers (center) or takes (squash) before the crop."""
        return resize_of(self.size, self.crop_pct)

    def facts(self) -> dict[str, Any]:
        """The settings in words and numbers, as the manifest states them."""
        rule = "short side" if self.crop_mode == "center" else "both sides, aspect ratio not kept"
        return {**asdict(self), "resize": list(self.resize), "resize_rule": rule}


def normalize(pixels: Pixels, how: Preprocessing) -> NDArray[np.float32]:
    """uint8 [B, H, W, C] to normalised float32 [B, C, H, W]."""
    mean = np.asarray(how.mean, dtype=np.float32)
    std = np.asarray(how.std, dtype=np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def shape_of(dtype: str, channels: int, size: tuple[int, int]) -> tuple[str | int, ...]:
    """The one rule of layouts: normalised floats [batch, C, H, W], pixels [batch, H, W, C]."""
    return (BATCH, *size, channels) if dtype == "uint8" else (BATCH, channels, *size)


@dataclass(frozen=True)
class InputSpec:
    """The input of a graph. dtype: float32, normalised, or uint8, which the graph normalises."""

    preprocessing: Preprocessing
    dtype: str = "float32"
    name: str = IMAGE

    @property
    def shape(self) -> tuple[str | int, ...]:
        """With "batch" first."""
        return shape_of(self.dtype, self.channels, self.size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.preprocessing.size

    @property
    def channels(self) -> int:
        return self.preprocessing.channels

    @property
    def uint8(self) -> bool:
        """Whether the graph takes pixels and normalises them itself."""
        return self.dtype == "uint8"

    def facts(self) -> dict[str, Any]:
        """As the manifest states it."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "normalised": not self.uint8,
        }

    def feed(self, pixels: Pixels) -> Array:
        """Pixels [k, H, W, C] as the graph takes them."""
        return pixels if self.uint8 else normalize(pixels, self.preprocessing)

    def blank(self, count: int = 1) -> Pixels:
        """Black pixels [count, H, W, C]."""
        return np.zeros((count, *self.size, self.channels), np.uint8)

    def check(self, image: Any) -> None:
        """DataError unless this is an array that the graph takes."""
        if not isinstance(image, np.ndarray):
            raise DataError(f"the graph takes a NumPy array, not {type(image).__name__}")
        fits = image.ndim == len(self.shape) and image.shape[1:] == self.shape[1:]
        if not fits or image.dtype != self.dtype or not len(image):
            raise DataError(
                f"the graph takes {self.dtype} {list(self.shape)}, "
                f"not {image.dtype} {list(image.shape)}"
            )


def stated_input(manifest: Mapping[str, Any]) -> InputSpec:
    """What the graph of a run folder takes."""
    facts, told = manifest["preprocessing"], manifest["interface"]["input"]
    how = Preprocessing(
        size=(facts["size"][0], facts["size"][1]),
        crop_pct=facts["crop_pct"],
        interpolation=facts["interpolation"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        crop_mode=facts["crop_mode"],
    )
    return InputSpec(how, told["dtype"], told["name"])
