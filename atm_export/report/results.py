"""report.html for an export, and results added to a finished run with the report drawn anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export import place
from atm_export.measure.data.images import ImageSet
from atm_export.measure.insight import Fates, features_of
from atm_export.report.documents import (
    BENCH,
    BENCH_FILE,
    EVALUATION,
    judge_in,
    read_document,
    read_report,
)
from atm_export.report.features import features_beside
from atm_export.report.page import FILE, feature_figures, kept_pictures, page, picture_section
from atm_export.report.pictures import LEAST, coloured, data_url, drawable, regions
from atm_export.runs import writing
from atm_export.runs.manifest import Manifest, manifest_of
from atm_export.runs.reading import Run, open_run, read_manifest
from atm_export.runs.writing import WorkFolder
from atm_export.subject import Subject
from atm_export.tasks.judge_patches import patch_cosines

SHOWN = 6  # easiest and hardest images in the report, of each
REMEDY = "give a copy of the run"  # the commands that add results have no --out


def draw_report(
    work: WorkFolder, names: Sequence[str], facts: Mapping[str, Any], pictures: str
) -> None:
    """Write report.html into the work folder of an export whose other files `names` lie there."""
    manifest = manifest_of(writing.described(work, names, facts))
    report = read_report(work.path)
    work.write(FILE, page(manifest, report, pictures=pictures).encode())


def pictures_of(
    pixels: NDArray[np.uint8],
    names: Sequence[str],
    fate: Fates,
    grid: tuple[int, ...],
    prefix: int,
    *,
    decided_per_image: bool,
) -> str:
    """The easiest and hardest images by remaining tokens, as HTML for the report; none where
    patches are no rows and columns."""
    whole = math.prod(grid) + prefix
    if not drawable(grid) or int(fate.tokens.min()) >= whole:
        return picture_section([], sorted_by_tokens=False)
    order = sorted(range(len(fate.tokens)), key=lambda i: (int(fate.tokens[i]), i))
    if not decided_per_image:
        order = sorted(order)
    shown = order if len(order) <= 2 * SHOWN else order[:SHOWN] + order[-SHOWN:]
    small = min(pixels.shape[1:3]) < LEAST // 2  # the browser enlarges it, by whole pixels
    pictures = [
        {
            "name": names[i] if i < len(names) else f"image {i + 1}",
            "rank": ("easy: " if k < len(shown) / 2 else "hard: ") if decided_per_image else "",
            "tokens": int(fate.tokens[i]),
            "whole": whole,
            "gflops": float(fate.gmacs[i]),
            "plain": data_url(coloured(pixels[i]), quality=95 if small else 82),
            "small": small,
            "drawn": data_url(regions(pixels[i], fate.maps[i].numpy(), grid)),
        }
        for k, i in enumerate(shown)
    ]
    return picture_section(pictures, sorted_by_tokens=decided_per_image)


def features_section(subject: Subject, images: ImageSet) -> str:
    """Features of patches of the first images, unmerged and merged, as HTML for the report; none
    where the task has none, or nothing merges."""
    backbone, name = subject.model.backbone, subject.model.backbone.judged
    if not backbone.unmerges or not drawable(backbone.grid) or not subject.plan.merges:
        return ""
    pictures = []
    for i, pixels in enumerate(images.pixels[:SHOWN]):
        plain, merged = features_of(backbone, subject.plan, subject.tensor(pixels[None]))
        pictures.append(
            {
                "name": images.names[i] if i < len(images.names) else f"image {i + 1}",
                "output": name,
                "cosine": float(np.median(patch_cosines(merged[None], plain[None]))),
                "small": min(pixels.shape[:2]) < LEAST // 2,
                "drawn": data_url(features_beside(pixels, plain, merged)),
            }
        )
    return feature_figures(pictures)


def refuse_loss(folder: Path, names: Sequence[str]) -> None:
    """OutputError, before any work, if results called `names` would replace what is no run's."""
    place.refuse_loss(folder, [*names, FILE], remedy=REMEDY)


def add_results(folder: Path, files: Mapping[str, bytes]) -> Manifest:
    """Put `files` beside the artifacts of a finished run, and draw its report anew; returns the
    new manifest."""
    manifest = read_manifest(folder)
    with writing.working(folder, manifest.run_key, REMEDY) as work:
        for name, data in files.items():
            work.write(name, data)
        if files:
            writing.extend(work, folder, sorted(files), {})
            manifest = read_manifest(folder)
        html = _drawn_anew(folder, manifest)
        if html is not None:
            work.write(FILE, html)
            writing.extend(work, folder, [FILE], {})
    return read_manifest(folder)


def open_with_report(folder: Path, replaced: str) -> Run:
    """A checked run whose report can be drawn anew, so that no measurement is lost to a document
    that cannot be read; `replaced`: the result that is about to be written. RunFolderError."""
    run = open_run(folder)
    _documents(folder, [name for name in run.manifest.files if name != replaced])
    return run


@dataclass(frozen=True)
class Documents:
    """What the report is drawn from, beside the manifest; evaluations that ran the unmerged model
    too come first."""

    report: dict[str, Any]
    evaluations: list[dict[str, Any]]
    bench: dict[str, Any] | None


def _documents(folder: Path, names: Sequence[str]) -> Documents:
    told = [name for name in sorted(names) if name.startswith("evaluation-")]
    found = [read_document(folder / name, EVALUATION) for name in told]
    return Documents(
        read_report(folder),
        sorted(found, key=_without_unmerged),
        read_document(folder / BENCH_FILE, BENCH) if BENCH_FILE in names else None,
    )


def _without_unmerged(facts: Mapping[str, Any]) -> bool:
    judge = judge_in(facts)
    return judge is None or judge.merit.key not in facts


def _drawn_anew(folder: Path, manifest: Manifest) -> bytes | None:
    """The report with everything that the run holds now, or None if it is as it was."""
    path = folder / FILE
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = _documents(folder, list(manifest.files))
    html = page(manifest, found.report, found.evaluations, kept_pictures(before), found.bench)
    return None if html == before else html.encode()
