"""What the official implementations of reduction methods make of DeiT-T, and how it is compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atm_export.config import ModelSpec
from atm_export.graph import lint, lint_tensorrt
from atm_export.inputs import normalize
from atm_export.methods.base import MethodSettings
from atm_export.methods.given import settings_of
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Backbone, LoadedModel
from atm_export.model.plan import plan_for
from atm_export.model.reference import Trace, run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from tests.exports import export, run_onnx
from tests.shared_data import golden, shared

STABLE = 1e-3  # above, the official decision lies within rounding noise
PYTORCH, ONNX = 1e-4, 2e-4


@cache
def deit_t() -> LoadedModel:
    weights = shared("data", "weights", "deit_tiny_patch16_224.safetensors")
    config = load_model_config("deit_t")
    return load_model(ModelSpec(name="deit_t", config=config, weights=str(weights)))


@cache
def exact_deit_t() -> Backbone:
    """In FP64."""
    return copy.deepcopy(deit_t().backbone).double()


@dataclass(frozen=True)
class Official:
    """One setting of a method: its plan, the images, and what the official code made of them."""

    name: str
    plan: MergePlan
    images: Tensor
    arrays: Mapping[str, Any]

    @property
    def stable(self) -> np.ndarray:
        """Images that no rounding noise decides."""
        gaps = np.maximum(self.arrays["f64_gap"], self.arrays["noise_gap"])
        return np.asarray(gaps <= STABLE)

    def has_counts(self, tokens_out: Any) -> None:
        expected = self.arrays["tokens_after_block"].T
        assert np.array_equal(np.asarray(tokens_out)[:, self.stable], expected[:, self.stable])

    def has_logits(self, logits: Any, atol: float, of: np.ndarray | None = None) -> None:
        """of: images [n] whose groups are the official ones; None: all that are stable."""
        off = np.abs(np.asarray(logits) - self.arrays["logits"]).max(axis=1)
        assert (off[self.stable if of is None else of] <= atol).all(), f"{self.name}: {off}"

    def equal_groups(self, maps: Any) -> np.ndarray:
        """Stable images [n] of which the same patches are together, and the same dropped."""
        pairs = zip(np.asarray(maps), self.arrays["patch_to_token"], strict=True)
        same = [partition(found) == partition(expected) for found, expected in pairs]
        return self.stable & np.array(same)

    def has_groups(self, maps: Any) -> None:
        """All stable ones are."""
        differ = np.flatnonzero(self.stable & ~self.equal_groups(maps))
        assert not len(differ), f"{self.name}: images {differ}"

    def has_most_groups(self, maps: Any) -> np.ndarray:
        """Those that are. FP32 sums of another CPU may settle a near tie the other way, so one
        image in four may differ: FP64 decides the same on all."""
        same = self.equal_groups(maps)
        assert same.sum() * 4 >= self.stable.sum() * 3, f"{self.name}: {same} of {self.stable}"
        return same


def partition(places: Any) -> set[frozenset[int]]:
    """The groups of an image's tokens, and the dropped ones (-1) each alone."""
    groups = {
        frozenset(np.flatnonzero(places == place).tolist()) for place in set(places.tolist()) - {-1}
    }
    return groups | {frozenset([-1, int(i)]) for i in np.flatnonzero(places == -1)}


def official(method: str, setting: str, flat: Mapping[str, Any]) -> Official:
    """A setting of the goldens, as settings of the method here."""
    arrays = golden(f"methods/{method}_shared")
    model = deit_t()
    own = {k.removeprefix(f"{setting}_"): v for k, v in arrays.items() if k.startswith(setting)}
    plan = plan_for(model.backbone, settings_of(method, flat))
    return Official(setting, plan, model.tensor(arrays["images_u8"]), own)


def reference_equals(expected: Official) -> Trace:
    """The eager reference gives counts, groups and logits of the official code."""
    exact = run_reference(exact_deit_t(), expected.plan, expected.images.double())
    expected.has_groups(exact.maps[-1])
    trace = run_reference(deit_t().backbone, expected.plan, expected.images)
    expected.has_counts(trace.tokens_out)
    same = expected.has_most_groups(trace.maps[-1])
    expected.has_logits(trace.outputs["logits"], PYTORCH, same)
    return trace


def graph_equals(expected: Official) -> Mapping[str, Any]:
    """So does the graph in ONNX Runtime, in one batch and alone; lints find nothing."""
    made = export(deit_t().backbone, expected.plan)
    assert lint.lint(made.traced) == []
    lint_tensorrt.check_for_tensorrt(made.shipped)
    out = run_onnx(made.traced, expected.images.numpy())
    counts = np.atleast_2d(out["tokens_per_block"]).T
    expected.has_counts(np.broadcast_to(counts, (len(counts), len(expected.images))))
    same = None
    if "patch_to_token" in expected.arrays:
        same = expected.has_most_groups(out["token_maps"][-1])
    expected.has_logits(out["logits"], ONNX, same)
    alone = [run_onnx(made.shipped, image.numpy())["logits"] for image in expected.images.split(1)]
    expected.has_logits(np.concatenate(alone), ONNX, same)
    return out


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


def mostly_close(found: Any, expected: Setting, tolerance: float) -> None:
    """Of three in four at least: see `Official.has_most_groups`."""
    gap = np.abs(np.asarray(found) - expected["logits"])[expected.stable].max(axis=1)
    assert (gap <= tolerance).sum() * 4 >= len(gap) * 3, f"images differ by {gap}"


def exact(method: MethodSettings, key: str) -> Trace:
    """The eager reference in FP64 on the eight images."""
    plan = plan_for(deit_t().backbone, method)
    return run_reference(exact_deit_t(), plan, images(key).double())


def eager(method: MethodSettings, key: str) -> Trace:
    """The eager reference on the eight images."""
    return run_reference(deit_t().backbone, plan_for(deit_t().backbone, method), images(key))


def in_onnx(method: MethodSettings, key: str) -> dict[str, Any]:
    """What ONNX Runtime makes of the traced graph; the graph that ships gives the same logits."""
    backbone = deit_t().backbone
    made = export(backbone, plan_for(backbone, method))
    assert lint.lint(made.traced) == []
    feed = images(key).numpy()
    out = run_onnx(made.traced, feed)
    shipped = run_onnx(made.shipped, feed)["logits"]
    np.testing.assert_allclose(shipped, out["logits"], atol=1e-5)
    return out


def same_maps(out: Mapping[str, Any], trace: Trace, of: float = 1.0) -> None:
    """ONNX Runtime moved every token as the reference did, in a share `of` the images at least
    (below 1: see `Official.has_most_groups`)."""
    same = (out["token_maps"] == trace.maps.numpy()).all(axis=(0, 2))
    assert same.mean() >= of, f"{same}"
    assert out["tokens_per_block"].tolist() == trace.tokens_out[:, 0].tolist()
