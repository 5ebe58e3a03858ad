"""Token-merging vision transformers, exported and proven."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atm_export.backends.tensorrt.build import engine_from_onnx as engine_from_onnx
    from atm_export.backends.tensorrt.runner import TensorRTRunner as TensorRTRunner
    from atm_export.backends.tensorrt.settings import EngineSettings as EngineSettings
    from atm_export.choice import Choice as Choice
    from atm_export.config import RunConfig as RunConfig
    from atm_export.model.merged_model import MergedModel as MergedModel
    from atm_export.model.merged_model import merged as merged
    from atm_export.pipeline import Outcome as Outcome
    from atm_export.pipeline import export as export
    from atm_export.resolving import resolve as resolve

__version__ = "0.1.0"

_WHERE = {
    "EngineSettings": "atm_export.backends.tensorrt.settings",
    "TensorRTRunner": "atm_export.backends.tensorrt.runner",
    "engine_from_onnx": "atm_export.backends.tensorrt.build",
    "RunConfig": "atm_export.config",
    "MergedModel": "atm_export.model.merged_model",
    "merged": "atm_export.model.merged_model",
    "Outcome": "atm_export.pipeline",
    "export": "atm_export.pipeline",
    "Choice": "atm_export.choice",
    "resolve": "atm_export.resolving",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Public names load late, so that importing the package stays cheap."""
    if name not in _WHERE:
        raise AttributeError(f"module 'atm_export' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
