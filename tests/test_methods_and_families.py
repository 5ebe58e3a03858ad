"""Methods on other families than DeiT: residual branches divided, heads that pool, other widths."""

from __future__ import annotations

from typing import Any

import pytest

from atm_export.methods.given import settings_of
from atm_export.model.plan import plan_for
from tests import test_lvvit, test_mae
from tests.families import prove

POINTS: dict[str, dict[str, Any]] = {
    "pitome": {"ratio": 0.9},
    "mctf": {"r": 0.3},
    "ats": {"blocks": [1]},
    "evit": {"keep": 0.6, "blocks": [1]},
    "zerotprune": {"blocks": [1], "keep": [0.6]},
    "diffrate": {"prune": [22, 14, 9], "merge": [18, 11, 8]},
    "tome": {"r": [4]},
}


@pytest.mark.parametrize("family", [test_lvvit, test_mae], ids=["lvvit", "mae"])
@pytest.mark.parametrize("method", POINTS)
def test_the_ladder_is_climbed(method: str, family: Any) -> None:
    backbone = family.narrow()
    depth = len(backbone.parts())
    point = {k: v[:depth] if method == "diffrate" else v for k, v in POINTS[method].items()}
    prove(backbone, plan_for(backbone, settings_of(method, point)))
