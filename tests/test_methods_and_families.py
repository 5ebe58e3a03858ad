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
}


@pytest.mark.parametrize("family", [test_lvvit, test_mae], ids=["lvvit", "mae"])
@pytest.mark.parametrize("method", POINTS)
def test_the_ladder_is_climbed(method: str, family: Any) -> None:
    backbone = family.narrow()
    prove(backbone, plan_for(backbone, settings_of(method, POINTS[method])))
