"""Presets that merge in few blocks: which blocks, which threshold, what they cost and lose.

    python tools/sparse_presets.py deit_t --weights deit_tiny.safetensors --images imagenet/val

For each number of GFLOPs, theta_min is found on every eighth image (`measure.budget`), for each set
of blocks; all images then say what it costs and loses. Writes docs/results/sparse-MODEL.json, and
into export_configs/presets/MODEL.yaml the set that moves the answers least (KL to the unmerged).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from preset_files import put_presets
from results import FOLDER

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError
from atm_export.measure.accuracy.divergence import BATCH, divergence, run_unmerged
from atm_export.measure.budget import within_budget
from atm_export.measure.data.images import ImageSet
from atm_export.measure.data.whole import DataPlace, open_set, pixels_of
from atm_export.methods.flat import flattened
from atm_export.methods.given import settings_of
from atm_export.model.plan import plan_for
from atm_export.model.zoo import load_model
from atm_export.model_configs import file_name, load_model_config
from atm_export.resolving import Budget

CURVE = {"alpha": 1.0, "beta": 0.035, "theta_min": 0.88}
SETS = ("3,5,7,9,11", "4,6,8,10", "4,7,10")
GFLOPS = (0.98, 0.9, 0.85, 0.78)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--images", type=Path, required=True)
    args = parser.parse_args()
    config = load_model_config(args.model)
    model = load_model(ModelSpec(name=args.model, config=config, weights=args.weights))
    place = DataPlace(str(args.images))
    samples, labelled = open_set(place, model)
    known = run_unmerged(model, *pixels_of(samples, labelled, place, model, workers=2))
    some, rows = ImageSet(known.pixels[::8], "every eighth"), []
    for gflops in GFLOPS:
        for blocks in (None, *SETS):
            start = settings_of("atm", {**CURVE, "merge_blocks": blocks})
            try:
                found, _ = within_budget(model, start, some, Budget(gflops, frozenset()))
            except ConfigError as error:  # few merges, the first of them early, save no more
                print(f"{gflops:g} GFLOPs, blocks {blocks}: {error}", flush=True)
                continue
            facts = divergence(model, plan_for(model.backbone, found), known).facts()
            rows.append({"goal": gflops, "settings": flattened(found), **facts})
            print(
                f"{gflops:g} GFLOPs, blocks {blocks or 'all'}: KL {facts['kl']['mean']}", flush=True
            )
    facts = {
        "model": args.model,
        "weights": model.weights["sha256"],
        "images": len(known.pixels),
        "batch": BATCH,
        "unmerged_top1": known.top1(),
        "rows": rows,
    }
    name = file_name(args.model)
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    (FOLDER / f"sparse-{name}.json").write_text(text, encoding="utf-8")
    found = {f"sparse-{goal:.2f}": best(rows, goal) for goal in GFLOPS}
    put_presets(name, {key: preset for key, preset in found.items() if preset}, "sparse")


def best(rows: list[dict[str, Any]], goal: float) -> dict[str, Any] | None:
    """As a preset: of the sets of blocks at one cost the one with the least KL."""
    few = [row for row in rows if row["goal"] == goal and row["settings"].get("merge_blocks")]
    if not few:
        return None
    row = min(few, key=lambda row: row["kl"]["mean"])
    settings = {k: v for k, v in row["settings"].items() if v is not None}
    measured = {
        "gflops": round(row["gflops"], 3),
        "agreement": row["agreement"]["percent"],
        "kl": round(row["kl"]["mean"], 4),
        "images": row["agreement"]["of"],
    }
    return {**settings, "measured": measured}


if __name__ == "__main__":
    main()
