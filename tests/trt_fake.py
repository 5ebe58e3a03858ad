"""A TensorRT that has the names of a real version, and no more; it notes what it is told.

Built from tests/trt_surface/*.json (written by tools/trt_surface.py from the real bindings): an
attribute, method, flag or parameter count that the version lacks fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

SURFACES = sorted((Path(__file__).parent / "trt_surface").glob("*.json"))
RETURNS = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("INetworkDefinition", "get_output"): "ITensor",
    ("INetworkDefinition", "get_layer"): "ILayer",
    ("ILayer", "get_output"): "ITensor",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
}
VALUES: dict[tuple[str, str], Any] = {
    ("Builder", "build_serialized_network"): b"a plan",
    ("OnnxParser", "parse"): True,
    ("OnnxParser", "parse_from_file"): True,
    ("ITimingCache", "serialize"): b"timings",
    ("ITimingCache", "combine"): True,
    ("INetworkDefinition", "num_inputs"): 1,
    ("INetworkDefinition", "num_outputs"): 1,
    ("INetworkDefinition", "num_layers"): 7,
    ("ILayer", "num_outputs"): 1,
    ("ITensor", "name"): "image",
    ("ITensor", "shape"): (-1, 3, 56, 56),
    ("ITensor", "dtype"): SimpleNamespace(name="FLOAT"),
}


def fake(
    surface: Path, values: Mapping[tuple[str, str], Any] = MappingProxyType({})
) -> tuple[ModuleType, list[tuple[Any, ...]]]:
    """The module, and the list of calls and settings that fills as it is used. values: what
    members give (functions: of their arguments), beside VALUES."""
    known = VALUES | dict(values)
    facts = json.loads(surface.read_text(encoding="utf-8"))
    classes, told = facts["classes"], []
    module = ModuleType(surface.stem)
    module.__version__ = facts["version"]  # type: ignore[attr-defined]

    def method(kind: str, name: str) -> Callable[..., Any]:
        parameters = classes[kind][name]

        def call(*arguments: Any) -> Any:
            if parameters != "overloaded":
                assert len(arguments) <= len(parameters), f"{kind}.{name} takes {parameters}"
            told.append((f"{kind}.{name}", *arguments))
            if (kind, name) in RETURNS:
                return make(RETURNS[kind, name])
            value = known.get((kind, name))
            return value(*arguments) if callable(value) else value

        return call

    def make(kind: str) -> Any:
        members = classes[kind]

        class Instance:
            def __getattr__(self, name: str) -> Any:
                if name not in members:
                    raise AttributeError(f"{surface.stem}: {kind} has no {name}")
                if members[name] is None:
                    return known.get((kind, name), 0)
                return method(kind, name)

            def __setattr__(self, name: str, value: Any) -> None:
                if name not in members:
                    raise AttributeError(f"{surface.stem}: {kind} has no {name}")
                told.append((f"{kind}.{name} =", value))

        return Instance()

    def enumeration(kind: str) -> Any:
        names = [n for n in classes[kind] if n.isupper() or n.startswith("SM")]
        return SimpleNamespace(**{n: i for i, n in enumerate(sorted(names))})

    for kind, members in classes.items():
        if "value" in members and "name" in members:
            setattr(module, kind, enumeration(kind))
        elif kind in ("ILogger", "IOutputAllocator"):  # what users of TensorRT derive from
            setattr(module, kind, type(kind, (), {"__init__": lambda self: None}))
        else:
            setattr(module, kind, lambda *arguments, kind=kind: make(kind))
    return module, told
