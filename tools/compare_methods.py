"""What each reduction method costs and loses on a folder of ImageNet images, without training.

    python tools/compare_methods.py --weights deit_tiny.safetensors --images imagenet/val

By the eager reference, batches of 100 images. GFLOPs: mean over the images. KL: mean over them of
KL(unmerged || method), with the 95 % interval of 10,000 bootstrap draws. Writes docs/methods.json
and prints the table of docs/methods.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atm_export.config import ModelSpec
from atm_export.measure.data.imagenet import imagenet_labels
from atm_export.methods import methods
from atm_export.methods.given import settings_of
from atm_export.model.backbone import LoadedModel
from atm_export.model.flops import trace_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.preprocess import list_images, read_images
from atm_export.tasks.classify import LOGITS

OUT = Path(__file__).parents[1] / "docs" / "methods.json"
BATCH, DRAWS = 100, 10_000
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("atm", {"alpha": 1, "beta": 0.035, "theta_min": 0.88}),
    ("diffrate", {"target": 0.9}),
    ("mctf", {"r": 0.22}),
    ("mctf", {"r": 10}),
    ("tome", {"r": [8], "proportional": True}),
    ("pitome", {"ratio": 0.945}),
    ("ats", {"blocks": "5-11"}),
    ("evit", {"keep": 0.77, "fuse": False}),
    ("evit", {"keep": 0.77}),
    ("zerotprune", {"blocks": [2, 5, 8], "keep": [0.85, 0.75, 0.7]}),
    ("diffrate", {"target": 0.7}),
)


@dataclass(frozen=True)
class Seen:
    """Normalised batches, their classes, and the unmerged model's logits [n, classes]."""

    batches: tuple[Tensor, ...]
    labels: Tensor
    logits: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="deit_t")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--images", type=Path, required=True)
    args = parser.parse_args()
    config = load_model_config(args.model)
    model = load_model(ModelSpec(name=args.model, config=config, weights=args.weights))
    seen = look(model, args.images)
    rows = []
    for method, flat in SETTINGS:
        rows.append(compared(model, method, flat, seen))
        print(line(rows[-1]), flush=True)
    facts = {
        "model": args.model,
        "weights": model.weights["sha256"],
        "images": len(seen.labels),
        "batch": BATCH,
        "unmerged_top1": share(seen.logits.argmax(dim=1) == seen.labels),
        "rows": rows,
    }
    OUT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def look(model: LoadedModel, images: Path) -> Seen:
    """Read the images and run the unmerged model."""
    files = list_images(images)
    pixels = read_images(files, model.preprocessing)
    batches = tuple(model.tensor(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH))
    logits = torch.cat([model.backbone.plain(batch) for batch in batches])
    return Seen(batches, torch.tensor(imagenet_labels(files)), logits)


def compared(model: LoadedModel, method: str, flat: dict[str, Any], seen: Seen) -> dict[str, Any]:
    """One row."""
    chosen = settings_of(method, flat)
    plan = plan_for(model.backbone, chosen)
    traces = [run_reference(model.backbone, plan, batch) for batch in seen.batches]
    logits = torch.cat([trace.outputs[LOGITS] for trace in traces])
    top1 = logits.argmax(dim=1)
    target, given = F.log_softmax(seen.logits, dim=1), F.log_softmax(logits, dim=1)
    kl = (target.exp() * (target - given)).sum(dim=1).double().numpy()
    picks = np.random.default_rng(0).integers(0, len(kl), (DRAWS, len(kl)))
    low, high = np.quantile(kl[picks].mean(axis=1), (0.025, 0.975))
    return {
        "method": method,
        "settings": flat,
        "summary": methods[method].summary(chosen, plan, None),
        "gflops": float(torch.cat([trace_gmacs(model.backbone, t) for t in traces]).mean()),
        "top1": share(top1 == seen.labels),
        "agreement": share(top1 == seen.logits.argmax(dim=1)),
        "kl": float(kl.mean()),
        "kl_interval": [float(low), float(high)],
    }


def share(hits: Tensor) -> float:
    """In percent."""
    return round(100 * float(hits.double().mean()), 3)


def line(row: dict[str, Any]) -> str:
    """A row of the table in docs/methods.md."""
    told = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
    low, high = row["kl_interval"]
    return (
        f"| `{row['method']}`, {told} | {row['gflops']:.3f} | {row['top1']:.1f} | "
        f"{row['agreement']:.1f} | {row['kl']:.4f} ({low:.4f} to {high:.4f}) |"
    )


if __name__ == "__main__":
    main()
