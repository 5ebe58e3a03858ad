"""Add results to a finished run: files, the manifest, and the report drawn anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atm_export import artifacts
from atm_export.runfolder import load_manifest


def add_results(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Put `files` beside the artifacts of a finished run; returns the new manifest."""
    key = str(load_manifest(folder)["run_key"])
    with artifacts.working(folder, key) as work:
        for name, data in files.items():
            work.write(name, data)
        return artifacts.extend(work, folder, sorted(files), {})


def evaluations_of(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every evaluation in a run folder, by runner."""
    names = [name for name in sorted(manifest["files"]) if name.startswith("evaluation-")]
    return [json.loads((folder / name).read_text(encoding="utf-8")) for name in names]
