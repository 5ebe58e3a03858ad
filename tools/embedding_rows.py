"""What token merging does to a model's embeddings: each preset of the paper's table A2 beside the
unmerged model, by the eager reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from results import ROOT, EmbeddingRow

from atm_export.config import ModelSpec
from atm_export.measure.accuracy.divergence import BATCH, divergence, run_unmerged
from atm_export.measure.data.whole import DataPlace, open_set, pixels_of
from atm_export.model.flops import unmerged_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.report.charts import Series, lines
from atm_export.report.front import standing_alone

TABLE = "A2"
PICTURE = ROOT / "docs" / "embeddings.svg"


def rows_of(name: str, weights: str, images: Path, called: str, quick: bool) -> Iterator[Any]:
    """Rows of one model; quick: its default preset alone."""
    config = load_model_config(name)
    model = load_model(ModelSpec(name=name, config=config, weights=weights, task="embed"))
    place = DataPlace(str(images))
    samples, labelled = open_set(place, model)
    known = run_unmerged(model, *pixels_of(samples, labelled, place, model, workers=0))
    for preset, settings in config.presets.items():
        if settings.table != TABLE or settings.fine_tuned:
            continue
        if quick and preset != config.default_preset:
            continue
        found = divergence(model, plan_for(model.backbone, settings.chosen), known).facts()
        yield {
            "model": name,
            "weights": str(model.weights["sha256"])[:12],
            "preset": preset,
            "gflops": found["gflops"],
            "unmerged_gflops": round(unmerged_gmacs(model.backbone), 4),
            "cosine": found["cosine"]["median"],
            "cosine_worst_percent": found["cosine"]["worst_percent"],
            **{f"recall{k}": found["neighbours"]["recall"][str(k)] for k in (1, 5, 10)},
            "overlap10": found["neighbours"]["overlap"]["10"],
            "batch": BATCH,
            "images": f"{len(known.pixels)} {called}",
        }


def picture(rows: tuple[EmbeddingRow, ...]) -> str:
    """Neighbours kept against GFLOPs, as an SVG that stands alone."""
    ordered = sorted(rows, key=lambda row: row.gflops)
    parts = (("recall@1", "recall1"), ("recall@10", "recall10"), ("overlap@10", "overlap10"))
    series = [
        Series(
            name,
            [(row.gflops, getattr(row, key).percent) for row in ordered],
            intervals=[(getattr(row, key).low, getattr(row, key).high) for row in ordered],
        )
        for name, key in parts
    ]
    keys = "".join(
        f'<text x="330" y="{170 + 13 * i}" class="f{i}">{name}</text>'
        for i, (name, _) in enumerate(parts)
    )
    title = "Nearest neighbours kept against GFLOPs"
    return standing_alone(lines(title, "GFLOPs an image", "%", series, y_most=100.0), keys)
