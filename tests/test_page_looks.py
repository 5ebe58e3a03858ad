"""report.html in a real browser: nothing cut, fetched or on top of other words; all readable."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.chromium import look
from tests.test_page import html_of


def channels(color: str) -> np.ndarray:
    return np.array([float(n) for n in re.findall(r"[\d.]+", color)[:3]])


def contrast(one: str, other: str) -> float:
    """WCAG 2: (lighter + 0.05) / (darker + 0.05) of relative luminances."""
    srgb = np.stack([channels(one), channels(other)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return float((high + 0.05) / (low + 0.05))


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_readable_on_a_phone_and_a_desktop_by_day_and_by_night(
    finished_run: Path, tmp_path: Path, width: int
) -> None:
    looks = {}
    for name in ("light", "dark"):
        folder = tmp_path / name
        folder.mkdir()
        seen = looks[name] = look(html_of(finished_run), folder, width, name == "dark")
        facts = seen.facts
        assert facts["inner"] == width and facts["scroll"] <= width
        for flaw in ("errors", "console", "loaded", "beyond", "cut", "overlaps", "broken"):
            assert not facts[flaw], flaw
        assert facts["images"] == 24 and facts["least"] >= 7
        for ink, color in facts["inks"].items():
            assert contrast(color, facts["page"]) >= (3 if ink == "line" else 4.5), ink
        # what is drawn is what was asked for: the margin has the page's colour, the page has ink
        assert (seen.picture[:, 2] == channels(facts["page"])).all()
        assert 0.01 < (seen.picture != channels(facts["page"])).any(axis=2).mean() < 0.9
    light, dark = looks["light"], looks["dark"]
    assert channels(light.facts["page"]).mean() > 200 > 60 > channels(dark.facts["page"]).mean()
    assert all(light.facts["inks"][ink] != dark.facts["inks"][ink] for ink in light.facts["inks"])
    assert light.picture.mean() > dark.picture.mean() + 60


def test_flaws_of_a_page_are_seen(finished_run: Path, tmp_path: Path) -> None:
    """The same look at a spoiled page."""
    html = html_of(finished_run)
    spoiled = (
        '<div style="width:700px">wide</div><img src="http://127.0.0.1:9/x.png">'
        '<svg role="img" viewBox="0 0 9 9" width="90"><text y="5">one</text><text y="6">two</text>'
        '<text x="8" y="5">beyond</text></svg><script>nothing.here()</script>'
    )
    facts = look(html.replace("<header>", spoiled + "<header>"), tmp_path, 390, False).facts
    assert facts["scroll"] >= 700 and facts["beyond"] and facts["cut"] and facts["broken"] == 1
    assert any("nothing" in error for error in facts["errors"])
    assert any("127.0.0.1" in error for error in facts["errors"]), "the page lets requests out"
    assert any("one / two" in pair for pair in facts["overlaps"]) and facts["console"]
