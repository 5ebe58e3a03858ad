"""Measure rows of the paper on weights and images that are here; what was measured is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError, WeightsError, unknown_name
from atm_export.inputs import Pixels
from atm_export.measure.accuracy.divergence import Unmerged, divergence, run_unmerged
from atm_export.measure.accuracy.journal import Journal, journal
from atm_export.measure.data.whole import DataPlace, open_set, pixels_of
from atm_export.measure.insight import fates, information_loss
from atm_export.methods.given import settings_of
from atm_export.model.backbone import LoadedModel
from atm_export.model.plan import plan_for
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.report.pictures import data_url, drawable, enlarged, regions
from atm_export.reproduce.rows import FINE_TUNED, MODELS, SWEPT, Row, rows_of
from atm_export.runs.writing import versions
from atm_export.settings import validated

Say = Callable[[str], None]
DRAWN = 6  # images of figures 7 and A1
STUDIES = ("2", "6", "7", "A1")  # figures that are not curves of rows


@dataclass(frozen=True)
class Wish:
    """weights: by model, what was given (nothing: what is published, of every model); batch:
    instead of the paper's, None: as the paper."""

    tables: tuple[str, ...]
    figures: tuple[str, ...]
    weights: Mapping[str, str]
    place: DataPlace
    batch: int | None
    workers: int


def reproduce(wish: Wish, out: Path, say: Say = lambda text: None) -> dict[str, Any]:
    """Facts of every row, measured or missing. Raises ConfigError, DataError, WeightsError."""
    rows = rows_of(wish.tables, wish.figures)
    known_names = [*MODELS, *(f"{name}{FINE_TUNED}" for name in MODELS)]
    for name in wish.weights:
        if name not in known_names:
            raise unknown_name("model", name, known_names)
    measured: list[dict[str, Any]] = []
    weights: dict[str, Any] = {}
    studies: dict[str, Any] = {}
    images = 0
    for name, model in _models(wish, rows, say):
        known = _known(wish, model, f"{name}: ", say)
        key, images = _key(name, model, known.pixels), len(known.pixels)
        with journal(out / f"{name}.jsonl", key) as book:
            own = [row for row in rows if row.needs == name]
            measured += [_measured(row, wish, model, known, book, say) for row in own]
        if set(wish.figures) & set(STUDIES):
            say(f"{name}: what merges where, and what is lost")
            studies[name] = _study(model, known.pixels)
        weights[name] = model.weights
    return {
        "images": images,
        "weights": weights,
        "rows": measured,
        "missing": [asdict(row) for row in rows if row.needs not in weights],
        "studies": studies,
        "versions": versions(),
    }


def _models(wish: Wish, rows: Sequence[Row], say: Say) -> Iterator[tuple[str, LoadedModel]]:
    """Models with their weights, one at a time. Where none were given, those whose published
    weights can be had; ConfigError where that is none."""
    needed = dict.fromkeys(row.needs for row in rows if row.needs in MODELS)
    given = wish.weights or dict.fromkeys(needed or (SWEPT,), "pretrained")
    found = False
    for name, place in given.items():
        say(f"{name}: loading the model")
        try:
            model = _model(name, place)
        except WeightsError as error:
            if wish.weights:
                raise
            say(f"{name}: {error}")
            continue
        found = True
        yield name, model
    if not found:
        raise ConfigError(
            "no published weights can be had here; give --weights MODEL=FILE for each model "
            "whose weights are here"
        )


def _model(name: str, weights: str) -> LoadedModel:
    model = name.removesuffix(FINE_TUNED)
    values = {"name": model, "config": load_model_config(model), "weights": weights}
    return load_model(validated(ModelSpec, values, "model"))


def _known(wish: Wish, model: LoadedModel, before: str, say: Say) -> Unmerged:
    samples, labelled = open_set(wish.place, model)
    say(f"{before}decoding {len(samples)} images")
    pixels, right = pixels_of(samples, labelled, wish.place, model, wish.workers)
    return run_unmerged(model, pixels, right)


def _key(name: str, model: LoadedModel, pixels: Pixels) -> str:
    facts = {
        "model": name,
        "weights": model.weights["sha256"],
        "images": hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest(),
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _measured(
    row: Row, wish: Wish, model: LoadedModel, known: Unmerged, book: Journal, say: Say
) -> dict[str, Any]:
    """The row with what it gives here; from the journal where the same was measured before."""
    settings = settings_of(row.method, row.settings)
    plan, batch = plan_for(model.backbone, settings), row.batch
    if wish.batch is not None and not row.part.endswith("A1"):
        batch = wish.batch
    batch = min(batch, len(known.pixels)) if plan.adaptive else min(batch, 100)
    same = {"plan": repr(plan), "batch": batch}  # 9 of 12 blocks is the usual split, said or not
    for entry in book.entries.values():
        if entry["same"] == same:
            return {**asdict(row), "ran": batch, "here": entry["facts"]}
    say(f"{row.part}: {row.model}, {row.label}")
    facts = divergence(model, plan, known, batch=batch).facts()
    book.add({"batch": len(book.entries), "same": same, "facts": facts})
    return {**asdict(row), "ran": batch, "here": facts}


def _study(model: LoadedModel, pixels: Pixels) -> dict[str, Any]:
    """Figures 2 (information loss), 6 (tokens merged) and 7, A1 (which patches), at the model's
    default preset, each image alone."""
    backbone, config = model.backbone, load_model_config(model.name)
    plan = plan_for(backbone, config.presets[str(config.default_preset)].chosen)
    images = model.tensor(pixels[:64])
    loss = information_loss(backbone, plan, images)
    fate = fates(backbone, plan, images[:DRAWN])
    known = divergence(model, plan, run_unmerged(model, pixels[:64], None))
    drawn = [
        {
            "plain": data_url(enlarged(pixels[i])),
            "drawn": data_url(regions(pixels[i], fate.maps[i].numpy(), backbone.grid)),
            "tokens": int(fate.tokens[i]),
        }
        for i in range(len(fate.tokens) if drawable(backbone.grid) else 0)
    ]
    return {"information_loss": loss, "merged_per_block": list(known.merged), "pictures": drawn}
