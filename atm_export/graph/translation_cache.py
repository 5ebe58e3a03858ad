"""Parse torch's translations once a process, not once an export.

torch.onnx parses some 500 onnxscript functions anew for every `export` call, about a third of a
translation's time, and this package translates a model in several pieces. What is cached is read
only. Private to torch (seen in 2.9 to 2.15); where it is not found, translations are slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_parsed: dict[str, Any] = {}


@contextmanager
def parsed_once() -> Iterator[None]:
    """Within, torch.onnx finds its translations parsed."""
    apis = _apis()
    if apis is None:
        yield
        return
    before = apis.get_torchlib_ops
    _parsed.setdefault("all", None)

    def translations() -> Any:
        if _parsed["all"] is None:
            _parsed["all"] = before()
        return _parsed["all"]

    apis.get_torchlib_ops = translations
    try:
        yield
    finally:
        apis.get_torchlib_ops = before


def _apis() -> Any:
    try:
        from torch.onnx._internal.exporter import _registration
    except ImportError:
        return None
    apis = getattr(_registration, "onnxscript_apis", None)
    return apis if hasattr(apis, "get_torchlib_ops") else None
