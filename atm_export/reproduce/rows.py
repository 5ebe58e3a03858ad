"""What the tables and figures of arXiv 2505.15160 consist of: models, methods, batches, claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atm_export.config import ModelConfig, Preset
from atm_export.errors import unknown_name
from atm_export.methods import USUAL_METHOD
from atm_export.methods.atm import default_split
from atm_export.model_configs import load_model_config

TABLES = ("1", "2", "3", "4", "A1", "A2", "A3", "A4", "A5")
FIGURES = ("2", "4", "5", "6", "7", "A1")
DEITS = ("deit_t", "deit_s", "deit_b")
LVVITS = ("lvvit_t", "lvvit_s", "lvvit_m")
OTHERS = ("t2t_vit_t_14", "t2t_vit_t_19", "mae_vit_b")
MODELS = (*DEITS, *LVVITS, *OTHERS)
BATCH, BATCH_T2T = 1024, 100  # the paper's
FINE_TUNED = "-fine-tuned"  # behind a model's name: the weights that table A3 is of
SWEPT = "deit_s"  # the model of table 3 and table A1
TABLE_2 = {  # what the paper states for ATM, in GFLOPs
    **{"deit_t": 0.9, "deit_s": 3.0, "lvvit_t": 2.0, "lvvit_s": 3.5},
    **{"t2t_vit_t_14": 4.1, "t2t_vit_t_19": 4.8, "mae_vit_b": 11.5},
}
BATCHES = tuple(2**i for i in range(11))
TRAINED = (  # table 4: trained for months elsewhere
    *("DynamicViT", "IA-RED2", "Evo-ViT", "EViT", "A-ViT", "ToMe", "BAT", "MCTF"),
)


@dataclass(frozen=True)
class Row:
    """One line: settings [flat] of a method on a model, and what the paper says of it (GFLOPs,
    top-1 %; None: nothing). weights: the name that the weights are given under."""

    part: str
    model: str
    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: int = BATCH
    gflops: float | None = None
    top1: float | None = None
    weights: str = ""

    @property
    def needs(self) -> str:
        return self.weights or self.model


def rows_of(tables: Sequence[str], figures: Sequence[str]) -> list[Row]:
    """Every row of the tables and of the figures that are curves; ConfigError for unknown ones."""
    for name in tables:
        if name not in TABLES:
            raise unknown_name("table", name, TABLES)
    for name in figures:
        if name not in FIGURES:
            raise unknown_name("figure", name, FIGURES)
    found = [row for name in TABLES if name in tables for row in _table(name)]
    return [*found, *(row for name in ("4", "5") if name in figures for row in _figure(name))]


def _table(name: str) -> Iterator[Row]:
    part = f"table {name}"
    if name == "3":
        yield from (row for model in DEITS for row in _splits(part, model))
    elif name == "A1":
        yield from (row for model in DEITS for row in _batches(part, model))
    elif name == "4":
        yield from _trained(part)
    else:
        models = {"A2": DEITS, "A3": DEITS, "A4": LVVITS, "A5": OTHERS, "1": DEITS}
        for model in models.get(name, MODELS):
            yield from _listed(part, name, model)


def _listed(part: str, table: str, model: str) -> Iterator[Row]:
    """Presets of a table; in tables 1 and 2 ATM's own point beside those of the other methods."""
    config = load_model_config(model)
    presets = {n: p for n, p in config.presets.items() if p.table == table}
    if table in ("1", "2") and presets:
        own = str(config.default_preset) if table == "1" else _nearest(TABLE_2[model], config)
        presets = {own: config.presets[own], **presets}
    if presets:
        yield _unmerged(part, model, config)
    for name, preset in presets.items():
        yield _preset(part, model, name, preset)


def _nearest(gflops: float, config: ModelConfig) -> str:
    """ATM's point behind GFLOPs that the paper rounds to a digit."""
    own = {
        name: preset.gflops
        for name, preset in config.presets.items()
        if preset.method == USUAL_METHOD and preset.gflops and not preset.fine_tuned
    }
    return min(own, key=lambda name: (round(abs(own[name] - gflops), 6), own[name]))


def _preset(part: str, model: str, name: str, preset: Preset) -> Row:
    weights = f"{model}{FINE_TUNED}" if preset.fine_tuned else model
    return Row(
        part, model, name, preset.method, preset.settings, batch_of(model),
        preset.gflops, preset.top1, weights,
    )  # fmt: skip


def _unmerged(part: str, model: str, config: ModelConfig) -> Row:
    paper = config.paper
    claim = (None, None) if paper is None else (paper.gflops, paper.top1)
    return Row(part, model, "unmerged", "none", {}, batch_of(model), *claim)


def _splits(part: str, model: str) -> Iterator[Row]:
    """The last block that groups alternately, from none to all; the paper prints DeiT-S."""
    config = load_model_config(model)
    preset = config.presets[str(config.default_preset)]
    for split in range(13):
        known = model == SWEPT and split == default_split(12)
        claim = (preset.gflops, 79.76) if known else (None, None)
        settings = {**preset.settings, "split": split}
        yield Row(part, model, f"l_s = {split}", USUAL_METHOD, settings, BATCH, *claim)


def _batches(part: str, model: str) -> Iterator[Row]:
    """Who shares r; the paper finds 79.64 to 79.79 % at 3.23 to 3.40 GFLOPs for DeiT-S."""
    config = load_model_config(model)
    preset = config.presets[str(config.default_preset)]
    for batch in BATCHES:
        yield Row(part, model, f"batch {batch}", USUAL_METHOD, preset.settings, batch)


def _trained(part: str) -> Iterator[Row]:
    """Of the methods that train, ATM's own rows can be run; the others need their own weights."""
    config = load_model_config(SWEPT)
    yield _unmerged(part, SWEPT, config)
    for name in ("a2-3.04", "a3-2.63"):
        if name in config.presets:
            yield _preset(part, SWEPT, name, config.presets[name])
    for name in TRAINED:
        yield Row(part, SWEPT, name, "", weights=f"{name}'s own trained weights")


def _figure(name: str) -> Iterator[Row]:
    """Figure 4: ATM's points and ToMe's; figure 5: thresholds that fall or are constant, and top-r
    that is constant, grows or shrinks by one a block, in alternate groups throughout."""
    part = f"figure {name}"
    for model in MODELS if name == "4" else DEITS:
        config = load_model_config(model)
        if name == "4":
            yield _unmerged(part, model, config)
            for key, preset in config.presets.items():
                if preset.method == USUAL_METHOD and preset.table and not preset.fine_tuned:
                    yield _preset(part, model, key, preset)
        else:
            yield from _thresholds(part, model)
        for r in range(2, 17, 2):
            yield Row(part, model, f"top-r, r = {r}", "tome", {"r": (r,)}, batch_of(model))
        if name == "5":
            yield from _growing(part, model)


def _thresholds(part: str, model: str) -> Iterator[Row]:
    for theta in (0.94, 0.92, 0.9, 0.88, 0.86, 0.84, 0.82):
        falls = {"alpha": 1.0, "beta": 0.035, "theta_min": theta, "split": 12}
        yield Row(part, model, f"falling to {theta:g}", USUAL_METHOD, falls)
        constant = {"alpha": theta, "beta": 0.0, "theta_min": theta, "split": 12}
        yield Row(part, model, f"constant {theta:g}", USUAL_METHOD, constant)


def _growing(part: str, model: str) -> Iterator[Row]:
    for mean in (6, 8, 10, 12):
        r = tuple(range(mean - 6, mean + 6))
        yield Row(part, model, f"top-r, {r[0]} to {r[-1]}", "tome", {"r": r})
        yield Row(part, model, f"top-r, {r[-1]} to {r[0]}", "tome", {"r": r[::-1]})


def batch_of(model: str) -> int:
    """The paper's batch for a model."""
    return BATCH_T2T if model.startswith("t2t") else BATCH
