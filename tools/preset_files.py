"""Presets that tools find, in export_configs/presets/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "export_configs" / "presets"


def put_presets(name: str, presets: Mapping[str, Mapping[str, Any]], start: str) -> None:
    """Write `presets` into a model's file, in place of those whose names begin with `start`."""
    path = FOLDER / f"{name}.yaml"
    there = yaml.safe_load(path.read_text())["presets"] if path.is_file() else {}
    kept = {key: value for key, value in there.items() if not key.startswith(start)}
    lines = ["presets:"]
    for key, value in sorted({**kept, **presets}.items()):
        text = yaml.safe_dump(dict(value), sort_keys=False, default_flow_style=True, width=10_000)
        lines.append(f"  {key}: {text.strip()}")
    FOLDER.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
