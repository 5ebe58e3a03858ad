"""The least that a manifest holds, for tests that need no model behind it."""

from __future__ import annotations

from typing import Any

from atm_export.runs.manifest import Manifest, manifest_of

FILES = ("model.onnx", "config.yaml", "report.json")


def least_facts() -> dict[str, Any]:
    """What `artifacts.publish` needs beside the files for `open_run` to take the folder."""
    return {
        "status": "proven",
        "model": "δ",
        "config": {},
        "weights": {"sha256": "0" * 64},
        "method": {
            "name": "none",
            "merge": "frozen",
            "summary": "unmerged",
            "preset": None,
            "operating_point": None,
            "theta_per_block": [None, None],
            "r_per_block": [None, None],
            "groups_per_block": [None, None],
        },
        "interface": {
            "input": {
                "name": "image",
                "shape": ["batch", 3, 8, 8],
                "dtype": "float32",
                "normalised": True,
            },
            "outputs": {"logits": {"shape": ["batch", 2], "dtype": "float32"}},
        },
        "opset": 20,
        "preprocessing": {
            "size": [8, 8],
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "crop_mode": "center",
            "resize": [8, 8],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "labels": ["no", "yes"],
        "licence": None,
        "notes": [],
        "golden": None,
    }


def having(manifest: Manifest, **facts: Any) -> Manifest:
    """The same with other `facts`, as JSON has them; ValueError where they do not fit."""
    return manifest_of({**manifest.document, **facts})


def engine_facts(**changes: Any) -> dict[str, Any]:
    """One engine's entry."""
    judged = dict.fromkeys(
        (
            "cosine_logits_of_nine_tenths",
            "min_cosine_logits",
            "top1_agreement",
            "token_share_differing",
        ),
        1.0,
    )
    judged["images"] = 32
    return {
        "precision": "fp16",
        "flavor": "tensorrt",
        "tensorrt": "10.3.0",
        "sms": [89],
        "source": {"file": "model.onnx", "sha256": "0" * 64},
        "profiles": ["1:8:64"],
        "tensors": {"image": {"mode": "input", "dtype": "float32", "shape": [-1, 3, 8, 8]}},
        "bytes": 6,
        "build": {"activation_bytes": None},
        "run": {"status": "not run"},
        "validation": {**judged, "tolerance": {"min_cosine_logits": 0.9}},
        **changes,
    }
