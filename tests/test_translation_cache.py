"""A piece is translated once a process: what may share a translation, and that sharing is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from atm_export.graph import sheet, translation_cache
from atm_export.graph.saving import graph_bytes
from atm_export.graph.structure import structure
from tests.exports import export
from tests.tiny import frozen_plan, tiny_vit, tome_plan


class Scaled(nn.Module):
    """A constant that no weight is, and one that is."""

    def __init__(self, factor: float, outside: float = 2.0, act: Any = nn.GELU) -> None:
        super().__init__()
        self.linear, self.factor, self.act = nn.Linear(3, 3), factor, act()
        self.register_buffer("outside", torch.tensor([outside]), persistent=False)


def test_weights_alone_do_not_tell_structures_apart() -> None:
    assert structure(Scaled(0.5)) == structure(Scaled(0.5)) is not None
    assert structure(Scaled(0.5), 20) != structure(Scaled(0.5), 21)


@pytest.mark.parametrize(
    "other",
    [
        {"factor": 0.25},
        {"factor": 0.5, "outside": 3.0},
        {"factor": 0.5, "act": nn.ReLU},
        {"factor": 0.5, "act": lambda: nn.GELU(approximate="tanh")},
    ],
)
def test_what_a_translation_depends_on_does(other: dict[str, Any]) -> None:
    assert structure(Scaled(0.5)) != structure(Scaled(**other))


def test_shapes_and_types_of_weights_do() -> None:
    kinds = [nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 4, bias=False), nn.Linear(3, 4).half()]
    assert len({structure(kind) for kind in kinds}) == 4


def test_what_has_no_name_is_never_shared() -> None:
    module = Scaled(0.5)
    module.factor = lambda x: x + 1  # type: ignore[assignment]
    assert structure(module) is None


def test_a_second_model_of_a_kind_is_not_translated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation_cache, "_translated", {})
    translated: list[str] = []
    before = sheet._translate

    def counted(piece: Any, *rest: Any) -> Any:
        translated.append(piece.kind)
        return before(piece, *rest)

    monkeypatch.setattr(sheet, "_translate", counted)
    options = {"depth": 2, "global_pool": "avg"}
    first, second = tiny_vit(seed=1, **options), tiny_vit(seed=2, **options)
    export(first, tome_plan(first, 3))
    once = len(translated)
    shared = graph_bytes(export(second, tome_plan(second, 3)).traced)
    assert len(translated) == once > 0
    export(second, frozen_plan(second, (2, 2)))
    assert once < len(translated) < 2 * once  # stem and head are the same
    monkeypatch.setattr(translation_cache, "_translated", {})
    assert graph_bytes(export(second, tome_plan(second, 3)).traced) == shared


def test_the_longest_unused_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import ModelProto

    monkeypatch.setattr(translation_cache, "_translated", {})
    monkeypatch.setattr(translation_cache, "MOST_KEPT", 2)
    made: list[str] = []

    def get(key: str | None) -> None:
        translation_cache.translated_once(key, (), lambda: made.append(str(key)) or ModelProto())

    for key in ("a", "b", "a", "c", "a", "b", None, None):
        get(key)
    assert made == ["a", "b", "c", "b", "None", "None"]
