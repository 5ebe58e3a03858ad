"""`atm-export list`: models, presets and the paper's figures."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from atm_export.config import MethodPreset, ModelConfig, Preset, load_model_config, model_names
from atm_export.model import SHIPPED

COLUMNS = (
    *("model", "presets", "default", "paper GFLOPs", "paper top-1 %"),
    *("GFLOPs here", "top-1 here"),
)
LEGEND = """\
a -> b: unmerged -> at the default preset. GFLOPs: 1e9 multiply-adds an image; here: linear layers,
convolutions and attention products (the paper counts LV-ViT by its repository's formula).
(*) needs the official weights (--weights FILE) and ImageNet's validation set (--images DIR) to be
measured; what random weights merge means nothing.
timm:NAME takes any plain timm VisionTransformer; `atm-export list MODEL` shows presets."""


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
    """One row a preset."""
    config = load_model_config(model)
    table = Table(box=box.SIMPLE, title_justify="left", title=f"Presets of {model}")
    for column in (
        "preset",
        "alpha",
        "beta",
        "theta_min",
        "split",
        "paper GFLOPs",
        "paper top-1 %",
        "",
    ):
        table.add_column(column, no_wrap=True)
    if config.paper is not None:
        table.add_row(
            "(unmerged)",
            "",
            "",
            "",
            "",
            f"{config.paper.gflops:.2f}",
            f"{config.paper.top1:.2f}",
            "",
        )
    for name, preset in config.presets.items():
        note = "default" if name == config.default_preset else ""
        note = "fine-tuned weights" if preset.fine_tuned else note
        table.add_row(name, *_numbers_of(preset), *_preset_notes(preset, note))
    console.print(table)


def _numbers_of(preset: Preset | MethodPreset) -> list[str]:
    """alpha, beta, theta_min, split; dashes for a method that has none of them."""
    if isinstance(preset, MethodPreset):
        return ["-"] * 4
    split = "3/4" if preset.split is None else str(preset.split)
    return [f"{preset.alpha:g}", f"{preset.beta:g}", f"{preset.theta_min:g}", split]


def _preset_notes(preset: Preset | MethodPreset, note: str) -> list[str]:
    if isinstance(preset, MethodPreset):
        settings = ", ".join(f"{name} {value}" for name, value in preset.settings.items())
        note = f"{preset.method}: {settings}{'; ' + note if note else ''}"
    return [
        "-" if preset.gflops is None else f"{preset.gflops:.2f}",
        "-" if preset.top1 is None else f"{preset.top1:.2f}",
        note,
    ]
