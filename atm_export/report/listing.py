"""`atm-export list`: models, presets and the paper's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from atm_export.config import ModelConfig, Preset, PresetFigures
from atm_export.methods import USUAL_METHOD, methods
from atm_export.model import SHIPPED
from atm_export.model_configs import load_model_config, model_names

COLUMNS = (
    *("model", "presets", "default", "paper GFLOPs", "paper top-1 %"),
    *("GFLOPs here", "top-1 here"),
)
LEGEND = """\
a -> b: unmerged -> at the default preset. GFLOPs: 1e9 multiply-adds an image; here: linear layers,
convolutions and attention products (the paper counts LV-ViT by its repository's formula).
(*) needs the official weights (--weights FILE) and ImageNet's validation set (--images DIR) to be
measured; what random weights merge means nothing.
timm:NAME takes any plain timm VisionTransformer, hf:OWNER/NAME or hf:./FOLDER a checkpoint of
transformers; `atm-export list MODEL` shows presets."""

FITTED = """\
fitted: the paper states what these methods cost, not their settings; these come nearest to that
cost, all tokens counted in the last block's MLP."""


def print_models(console: Console) -> None:
    """One row a model: what the paper reports, and what was measured here."""
    table = Table(box=box.SIMPLE, title_justify="left", title="Models (paper: arXiv 2505.15160)")
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    for name in model_names():
        config = load_model_config(name)
        missing = "" if config.family in SHIPPED else " (plugin)"
        table.add_row(name + missing, *_model_row(config))
    console.print(table)
    console.print(LEGEND, highlight=False)


def _model_row(config: ModelConfig) -> list[str]:
    default = config.presets.get(config.default_preset or "")
    gflops, top1, gflops_here, top1_here = "-", "-", "-", "-"
    if config.paper is not None:
        gflops, top1 = f"{config.paper.gflops:.2f}", f"{config.paper.top1:.2f}"
        if default is not None and default.gflops is not None:
            gflops += f" -> {default.gflops:.2f}"
            top1 += f" -> {default.top1:.2f}"
    if config.measured is not None:
        merged = config.measured.merged_gflops
        gflops_here = (
            f"{config.measured.gflops:.2f} -> {'(*)' if merged is None else f'{merged:.2f}'}"
        )
        top1_here = "(*)" if config.measured.top1 is None else f"{config.measured.top1:.2f}"
    presets, default_name = str(len(config.presets)), config.default_preset or "-"
    return [presets, default_name, gflops, top1, gflops_here, top1_here]


def print_presets(console: Console, model: str) -> None:
    """A table of the presets of the method that most of them are of, a column a setting; and one of
    the others."""
    config = load_model_config(model)
    named = Counter(preset.method for preset in config.presets.values())
    method = named.most_common(1)[0][0] if named else USUAL_METHOD
    own = {name: p for name, p in config.presets.items() if p.method == method}
    rows = {name: _settings(preset) for name, preset in own.items()}
    settings = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = _table(f"Presets of {model}", *settings)
    if config.paper is not None:
        figures = (f"{config.paper.gflops:.2f}", f"{config.paper.top1:.2f}", "")
        table.add_row("(unmerged)", *("" for _ in settings), *figures)
    for name, preset in own.items():
        cells = [rows[name].get(column, "") for column in settings]
        table.add_row(name, *cells, *_figures(preset), _notes(preset, name, config))
    console.print(table)
    if len(own) == len(config.presets):
        return
    table = _table(f"Presets of {model}, other methods", "method", "settings")
    for name, preset in config.presets.items():
        if name not in own:
            words = ", ".join(f"{k} {v}" for k, v in _settings(preset).items())
            note = _notes(preset, name, config)
            table.add_row(name, preset.method, words, *_figures(preset), note)
    console.print(table)
    console.print(FITTED, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE, title_justify="left", title=title)
    for column in ("preset", *columns, "paper GFLOPs", "paper top-1 %"):
        table.add_column(column, no_wrap=True)
    table.add_column("")
    return table


def _notes(preset: Preset, name: str, config: ModelConfig) -> str:
    notes = ["fine-tuned weights"] if preset.fine_tuned else []
    notes += ["fitted"] if preset.fitted and preset.table else []
    notes += [f"GFLOPs {preset.gflops:.2f}"] if preset.gflops and not preset.table else []
    notes += [preset.published] if preset.published else []
    notes += [_measured(preset.measured)] if preset.measured else []
    notes += ["default"] if name == config.default_preset and not preset.fine_tuned else []
    return "; ".join(notes)


def _settings(preset: Preset) -> Mapping[str, str]:
    """What a preset sets, by column."""
    return methods[preset.method].columns(preset.settings)


def _measured(figures: PresetFigures) -> str:
    return (
        f"here {figures.gflops:.2f} GFLOPs, {figures.agreement:.1f} % as unmerged, "
        f"KL {figures.kl:.4f} ({figures.images} images)"
    )


def _figures(preset: Preset) -> tuple[str, str]:
    return (
        "-" if preset.gflops is None or preset.table is None else f"{preset.gflops:.2f}",
        "-" if preset.top1 is None else f"{preset.top1:.2f}",
    )
