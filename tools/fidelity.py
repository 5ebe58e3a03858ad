"""Reproduce table A2 (DeiT-T, no training) on a folder of ImageNet images.

    python tools/fidelity.py --weights deit_tiny.safetensors --images imagenet/val

Prints one row an operating point: alpha, beta, theta_min, GFLOPs in the paper and measured, top-1
in the paper and measured. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from atm_export.config import ModelSpec
from atm_export.inputs import normalize
from atm_export.measure.data.imagenet import imagenet_labels
from atm_export.model import vit  # noqa: F401  (registers the family)
from atm_export.model.backbone import families
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.reference import run_reference
from atm_export.model_configs import load_model_config
from atm_export.preprocess import list_images, read_images
from atm_export.tasks.classify import LOGITS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="deit_t")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=100)
    args = parser.parse_args()

    config = load_model_config(args.model)
    spec = ModelSpec(name=args.model, config=config, weights=args.weights)
    model = families[config.family](spec)
    backbone = model.backbone
    files = list_images(args.images)
    labels = torch.tensor(imagenet_labels(files))
    pixels = read_images(files, model.preprocessing)
    batches = [
        torch.from_numpy(normalize(pixels[i : i + args.batch], model.preprocessing))
        for i in range(0, len(files), args.batch)
    ]
    with torch.inference_mode():
        plain = torch.cat([backbone.plain(b).argmax(1) for b in batches])
    base = 100 * float((plain == labels).double().mean())
    print(
        f"unmerged: {unmerged_gmacs(backbone):.4f} GFLOPs, top-1 {base:.2f} on {len(files)} images"
    )
    rows = []
    for name, preset in config.presets.items():
        if preset.fine_tuned:
            continue
        point = preset.settings
        plan = plan_for(backbone, preset.chosen)
        traces = [run_reference(backbone, plan, b) for b in batches]
        gmacs = float(torch.cat([trace_gmacs(backbone, t) for t in traces]).mean())
        predicted = torch.cat([t.outputs[LOGITS].argmax(1) for t in traces])
        top1 = 100 * float((predicted == labels).double().mean())
        agree = 100 * float((predicted == plain).double().mean())
        error = 100 * (gmacs / (preset.gflops or gmacs) - 1)
        print(
            f"{name:9s} alpha {point['alpha']:<6g} beta {point['beta']:<6g} theta_min "
            f"{point['theta_min']:<6g} GFLOPs {preset.gflops:.2f} -> {gmacs:.3f} ({error:+.1f} %)  "
            f"top-1 {preset.top1:.2f} -> {top1:.1f}  agreement {agree:.1f}",
            flush=True,
        )
        rows.append({"preset": name, "gflops": gmacs, "top1": top1, "agreement": agree})
    print(
        json.dumps({"model": args.model, "images": len(files), "unmerged_top1": base, "rows": rows})
    )


if __name__ == "__main__":
    main()
