"""Presets of the methods that the paper compares with: knobs fitted to the GFLOPs that it states.

    python tools/table_presets.py compared_methods.csv

The paper (arXiv 2505.15160, tables 1 and 2) says what these methods cost, not how they are set. The
knob of each is the one whose multiply-adds come nearest, every token counted in the last block's
MLP, as their authors count. Counts of these methods depend on no weights. Writes
export_configs/presets/MODEL.yaml.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from preset_files import put_presets

from atm_export.config import ModelSpec
from atm_export.methods import methods
from atm_export.methods.flat import flattened
from atm_export.methods.given import settings_of
from atm_export.model.backbone import LoadedModel
from atm_export.model.flops import trace_gmacs
from atm_export.model.plan import plan_for, shape_of
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config

MODELS = {
    "DeiT-T": "deit_t",
    "DeiT-S": "deit_s",
    "DeiT-B": "deit_b",
    "LV-ViT-T": "lvvit_t",
    "LV-ViT-S": "lvvit_s",
    "T2T-ViT_t-14": "t2t_vit_t_14",
    "T2T-ViT_t-19": "t2t_vit_t_19",
    "MAE ViT-B": "mae_vit_b",
}
# Where the search begins; MCTF with a number of tokens a block, as its paper has it.
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "EViT": ("evit", {"keep": 0.7}),
    "ToMe": ("tome", {"r": (8,)}),
    "MCTF": ("mctf", {"r": 10}),
    "Zero-TP": ("zerotprune", {"keep": (0.85, 0.75, 0.7)}),
}
PRECURSOR = ("Zero-TP",)  # not the paper's method, so its accuracy is not claimed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    rows = list(csv.DictReader(parser.parse_args().rows.open(encoding="utf-8")))
    for title, name in MODELS.items():
        own = [r for r in rows if r["model"] == title and r["method"] in STARTS]
        own = [r for r in own if r["source"] in ("Table 1", "Table 2")]
        config = load_model_config(name)
        model = load_model(ModelSpec(name=name, config=config, weights="random"))
        found = {}
        for row in own:
            method, start = STARTS[row["method"]]
            table = row["source"].removeprefix("Table ")
            preset = fitted(model, method, start, float(row["gflops"]))
            if row["method"] not in PRECURSOR:
                preset["top1"] = float(row["top1_percent"])
            found[f"table{table}-{method}"] = {**preset, "table": table}
            print(name, f"table{table}-{method}", preset, flush=True)
        put_presets(name, found, "table")


def fitted(model: LoadedModel, method: str, start: dict[str, Any], gflops: float) -> dict[str, Any]:
    """The nearest step of the method's dial."""
    settings = settings_of(method, start)
    steps = methods[method].dial(settings, shape_of(model.backbone))
    image = model.tensor(model.input(uint8=False).blank())

    def cost(step: int) -> float:
        plan = plan_for(model.backbone, settings_of(method, {**flattened(settings), **steps[step]}))
        return float(trace_gmacs(model.backbone, run_reference(model.backbone, plan, image), False))

    low, high = 0, len(steps) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= gflops else (low, middle)
    best = min((low, high), key=lambda step: abs(cost(step) - gflops))
    chosen = flattened(settings_of(method, {**flattened(settings), **steps[best]}))
    return {"method": method, "settings": chosen, "gflops": gflops, "fitted": True}


if __name__ == "__main__":
    main()
