"""report.html for an export, and results added to a finished run with the report drawn anew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export import artifacts, place
from atm_export.artifacts import WorkFolder
from atm_export.evaluate.insight import Fates
from atm_export.report.page import FILE, kept_pictures, page, picture_section
from atm_export.report.pictures import data_url, enlarged, regions
from atm_export.runfolder import load_manifest, sha256

SHOWN = 6  # easiest and hardest images in the report, of each


def draw_report(
    work: WorkFolder, names: Sequence[str], facts: Mapping[str, Any], pictures: str
) -> None:
    """Write report.html into the work folder of an export whose other files `names` lie there."""
    files = {
        name: {"bytes": (work.path / name).stat().st_size, "sha256": sha256(work.path / name)}
        for name in names
    }
    report = json.loads((work.path / "report.json").read_text(encoding="utf-8"))
    work.write(FILE, page({**facts, "files": files}, report, pictures=pictures).encode())


def pictures_of(
    pixels: NDArray[np.uint8],
    names: Sequence[str],
    fate: Fates,
    grid: tuple[int, int],
    prefix: int,
    *,
    decided_per_image: bool,
) -> str:
    """The easiest and hardest images by remaining tokens, as HTML for the report."""
    whole = grid[0] * grid[1] + prefix
    if int(fate.tokens.min()) >= whole:
        return picture_section([], sorted_by_tokens=False)
    order = sorted(range(len(fate.tokens)), key=lambda i: (int(fate.tokens[i]), i))
    if not decided_per_image:
        order = sorted(order)
    shown = order if len(order) <= 2 * SHOWN else order[:SHOWN] + order[-SHOWN:]
    pictures = [
        {
            "name": names[i] if i < len(names) else f"image {i + 1}",
            "rank": ("easy: " if k < len(shown) / 2 else "hard: ") if decided_per_image else "",
            "tokens": int(fate.tokens[i]),
            "whole": whole,
            "gflops": float(fate.gmacs[i]),
            "plain": data_url(enlarged(pixels[i])),
            "drawn": data_url(regions(pixels[i], fate.maps[i].numpy(), grid)),
        }
        for k, i in enumerate(shown)
    ]
    return picture_section(pictures, sorted_by_tokens=decided_per_image)


def refuse_loss(folder: Path, names: Sequence[str]) -> None:
    """OutputError, before any work, if results called `names` would replace what is no run's."""
    place.refuse_loss(folder, [*names, FILE])


def add_results(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Put `files` beside the artifacts of a finished run, and draw its report anew; returns the
    new manifest."""
    manifest = load_manifest(folder)
    with artifacts.working(folder, str(manifest["run_key"])) as work:
        for name, data in files.items():
            work.write(name, data)
        if files:
            manifest = artifacts.extend(work, folder, sorted(files), {})
        html = _drawn_anew(folder, manifest)
        if html is not None:
            work.write(FILE, html)
            manifest = artifacts.extend(work, folder, [FILE], {})
    return manifest


def evaluations_of(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every evaluation in a run folder, by runner; those that ran the unmerged model too first."""
    names = [name for name in sorted(manifest["files"]) if name.startswith("evaluation-")]
    found = [json.loads((folder / name).read_text(encoding="utf-8")) for name in names]
    return sorted(found, key=lambda facts: "agreement" not in facts)


def _drawn_anew(folder: Path, manifest: Mapping[str, Any]) -> bytes | None:
    """The report with everything that the run holds now, or None if it is as it was."""
    path = folder / FILE
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    bench = None
    if "bench.json" in manifest["files"]:
        bench = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    evaluations = evaluations_of(folder, manifest)
    html = page(manifest, report, evaluations, kept_pictures(before), bench)
    return None if html == before else html.encode()
