"""What a process translated once it does not translate again.

Pieces of equal structure, in models of one family or in policies of one model, have one
translation. And torch.onnx parses some 500 onnxscript functions anew for every `export` call, about
a third of a translation's time; they are parsed once. That is private to torch (seen in 2.9 to
2.15); where it is not found, translations are slower. What is cached is read only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import onnx

MOST_KEPT = 256  # translations, some 100 kB each

_parsed: dict[str, Any] = {}
_translated: dict[str, onnx.ModelProto] = {}


def translated_once(
    key: str | None, weights: Collection[str], translate: Callable[[], onnx.ModelProto]
) -> onnx.ModelProto:
    """What `translate` gives, without the numbers of the initializers named in `weights`; made
    anew where the key is new or None, and the longest unused is forgotten."""
    made = None if key is None else _translated.pop(key, None)
    if made is None:
        made = translate()
        for tensor in made.graph.initializer:
            if tensor.name in weights:
                tensor.ClearField("raw_data")
    if key is not None:
        _translated[key] = made
        if len(_translated) > MOST_KEPT:
            del _translated[next(iter(_translated))]
    return made


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
