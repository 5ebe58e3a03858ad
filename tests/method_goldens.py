"""Goldens of the official implementations of reduction methods, on DeiT-T and eight images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atm_export.config import ModelSpec
from atm_export.graph.lint import lint
from atm_export.inputs import normalize
from atm_export.methods.base import MethodSettings
from atm_export.model.backbone import LoadedModel
from atm_export.model.plan import plan_for
from atm_export.model.reference import Trace, run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from tests.exports import export, run_onnx
from tests.shared_data import golden, shared

STABLE = 1e-3  # above it no backend can be asked to decide alike
EAGER_ATOL, ONNX_ATOL = 1e-4, 2e-4


@cache
def deit_t() -> LoadedModel:
    """The model of the goldens."""
    path = shared("data", "weights", "deit_tiny_patch16_224.safetensors")
    config = load_model_config("deit_t")
    return load_model(ModelSpec(name="deit_t", config=config, weights=str(path)))


@dataclass(frozen=True)
class Setting:
    """One setting of a golden file: its arrays, and the images that are stable under noise."""

    arrays: Mapping[str, Any]
    name: str

    def __getitem__(self, key: str) -> Any:
        return self.arrays[f"{self.name}_{key}"]

    @property
    def stable(self) -> list[int]:
        gaps = np.maximum(self["f64_gap"], self["noise_gap"])
        return [i for i, gap in enumerate(gaps) if gap <= STABLE]

    @property
    def tokens(self) -> list[int]:
        """Tokens that enter each block's MLP, the same in every image."""
        (counts,) = {tuple(row) for row in self["tokens_after_block"].tolist()}
        return list(counts)


@cache
def _arrays(method: str) -> dict[str, Any]:
    return golden(f"methods/{method}_shared")


def setting(method: str, name: str) -> Setting:
    """A setting of a method's golden file."""
    return Setting(_arrays(method), name)


def images(method: str) -> Tensor:
    """The eight images, normalised."""
    return torch.from_numpy(normalize(_arrays(method)["images_u8"], deit_t().preprocessing))


def close(found: Any, expected: Setting, tolerance: float) -> None:
    """Logits of the stable images are the official ones."""
    stable = expected.stable
    gap = np.abs(np.asarray(found) - expected["logits"])[stable].max(axis=1)
    worst = int(gap.argmax())
    assert gap[worst] <= tolerance, f"image {stable[worst]} differs by {gap[worst]:.1e}"


def eager(method: MethodSettings, key: str) -> Trace:
    """The eager reference on the eight images."""
    return run_reference(deit_t().backbone, plan_for(deit_t().backbone, method), images(key))


def in_onnx(method: MethodSettings, key: str) -> dict[str, Any]:
    """What ONNX Runtime makes of the traced graph; the graph that ships gives the same logits."""
    backbone = deit_t().backbone
    made = export(backbone, plan_for(backbone, method))
    assert lint(made.traced) == []
    feed = images(key).numpy()
    out = run_onnx(made.traced, feed)
    shipped = run_onnx(made.shipped, feed)["logits"]
    np.testing.assert_allclose(shipped, out["logits"], atol=1e-5)
    return out


def same_maps(out: Mapping[str, Any], trace: Trace) -> None:
    """ONNX Runtime moved every token as the reference did."""
    assert np.array_equal(out["token_maps"], trace.maps.numpy())
    assert out["tokens_per_block"].tolist() == trace.tokens_out[:, 0].tolist()
