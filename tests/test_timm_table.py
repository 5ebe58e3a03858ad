"""docs/reference/timm.md: what it says is in its file, and the file is what this version does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """tools/timm_models.py"""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import timm_models

    return timm_models


@pytest.fixture
def recorded(tool: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tool.FILE.read_text(encoding="utf-8"))
    if found["timm"] != timm.__version__:
        pytest.skip(f"recorded with timm {found['timm']}")
    return found


def test_the_page_is_what_the_file_says(tool: Any) -> None:
    assert tool.main(["--check"]) == 0


def test_every_pretrained_tag_is_there(recorded: dict[str, Any]) -> None:
    assert [row["tag"] for row in recorded["rows"]] == timm.list_pretrained()


@pytest.mark.parametrize(
    "tag",
    [
        "deit_tiny_patch16_224.fb_in1k",
        "vit_base_patch32_clip_224.openai",
        "vit_small_patch14_dinov2.lvd142m",
        "vit_small_patch16_dinov3.lvd1689m",
        "beit_base_patch16_224.in22k_ft_in22k",
        "cait_xxs24_224.fb_dist_in1k",
        "samvit_base_patch16.sa1b",
        "resnet18.a1_in1k",
    ],
)
def test_a_verdict_is_this_versions(tool: Any, recorded: dict[str, Any], tag: str) -> None:
    (row,) = (row for row in recorded["rows"] if row["tag"] == tag)
    assert tool.row_of(tag) == row
