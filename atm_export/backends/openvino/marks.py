"""Nodes of a model in OpenVINO's own format that stay in FP32 when the rest runs in bfloat16."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from typing import Any

from atm_export.errors import AtmExportError

# Runtime information of a node (openvino/src/common/transformations, from 2026.1 on).
MARK = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:bf16,f16"}
LOWERED = ("bf16", "f16")


def marked(text: bytes) -> frozenset[str]:
    """Names of the layers that carry the mark."""
    return frozenset(
        layer.get("name", "")
        for layer in ElementTree.fromstring(text).iter("layer")
        if layer.find(f"rt_info/attribute[@name='{MARK['name']}']") is not None
    )


def require_marks(compiled: Any, keep: Collection[str]) -> None:
    """AtmExportError if a compiled model runs a node of `keep` in less than FP32."""
    lowered = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        made_of = facts["originalLayersNames"].astype(str).split(",")
        low = facts["runtimePrecision"].astype(str) in LOWERED
        if low and facts["layerType"].astype(str) != "Reorder" and set(made_of) & set(keep):
            lowered.append(node.get_friendly_name())
    if lowered:
        raise AtmExportError(
            f"this OpenVINO lowers the matching ({lowered[0]} and {len(lowered) - 1} other nodes), "
            "which stays in FP32 in every precision; take --precision int8 or fp32"
        )
