"""Where the project's shared test data lies; tests are skipped where it is absent."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from atm_export.preprocess import list_images

SHARED = Path(os.environ.get("ATM_EXPORT_SHARED") or Path(__file__).resolve().parents[2] / "shared")


def shared(*parts: str) -> Path:
    """A file or folder of the shared data; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"shared test data '{'/'.join(parts)}' is absent (set ATM_EXPORT_SHARED)")
    return path


def golden(name: str) -> dict[str, Any]:
    """Arrays of one golden file by name."""
    with np.load(shared("data", "golden", f"{name}.npz")) as archive:
        return {key: archive[key] for key in archive.files}


def sample_images(step: int = 1) -> list[Path]:
    """Every `step`-th of the sorted sample images."""
    return list_images(shared("data", "imagenet_sample", "val"))[::step]


@cache
def golden_images() -> torch.Tensor:
    """The input of the `*_seed0` goldens, [2, 3, 224, 224]."""
    noise = np.random.RandomState(0).standard_normal((2, 3, 224, 224))
    return torch.from_numpy(noise.astype(np.float32))


def golden_weights(module: nn.Module, seed: int = 0, keep: Sequence[str] = ()) -> None:
    """Fill `module` by the rule under which the goldens were made; `keep` names what stays."""
    state = {}
    for name, tensor in module.state_dict().items():
        if name in keep or not tensor.is_floating_point():
            state[name] = tensor
            continue
        shape = tuple(tensor.shape)
        rng = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()) & 0xFFFFFFFF)
        noise = rng.standard_normal(shape)
        last = name.rsplit(".", 1)[-1]
        if last in ("cls_token", "pos_embed"):
            noise = 0.02 * noise
        elif len(shape) >= 2:
            noise = noise / np.sqrt(np.prod(shape[1:]))
        elif last == "running_mean":
            noise = 0.1 * noise
        elif last == "running_var":
            noise = 1 + 0.1 * np.abs(noise)
        else:
            noise = 1 + 0.1 * noise if last == "weight" else 0.02 * noise
        state[name] = torch.from_numpy(np.asarray(noise, dtype=np.float32))
    module.load_state_dict(state, strict=True)
