"""Draw accuracy against GFLOPs (figure 4 of the paper) for the README: ATM against ToMe.

    python tools/draw_curves.py --model deit_t=deit_tiny.safetensors \\
        --model timm:vit_tiny_patch16_224=vit_tiny.safetensors --images imagenet/val

Every point is measured by the eager reference on all images of the folder (synset folders), batch
32, one r a batch. Points are kept in `curves.json` in --out as soon as they are measured, so that
an interrupted run goes on; the bars are 95 % Wilson intervals. Ends with one JSON line. What ships
in docs/ is a copy.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atm_export.choice import Choice
from atm_export.errors import OutputError
from atm_export.inputs import normalize
from atm_export.loose_files import put_files
from atm_export.measure.data.samples import open_samples
from atm_export.methods.atm import AtmSettings, OperatingPoint
from atm_export.methods.plan import MergePlan
from atm_export.methods.tome import TomeSettings
from atm_export.model.backbone import LoadedModel
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.place import refuse_loss
from atm_export.preprocess import read_image
from atm_export.prove.intervals import share_facts
from atm_export.resolving import resolve
from atm_export.tasks.classify import LOGITS

POINTS = (  # seven rows of table A2, DeiT-T, and a cheaper one of the same grid
    (0.98, 0.035, 0.93),
    (0.985, 0.025, 0.885),
    (1.0, 0.035, 0.88),
    (1.0, 0.035, 0.86),
    (0.995, 0.04, 0.855),
    (0.985, 0.04, 0.83),
    (0.995, 0.045, 0.815),
    (0.97, 0.045, 0.8),
)
TOME = (4, 6, 8, 10, 13, 16)
BATCH = 32


def plans(model: LoadedModel) -> Iterator[tuple[str, str, MergePlan]]:
    """Method, name and plan of every point."""
    backbone = model.backbone
    yield "unmerged", "unmerged", MergePlan.unmerged(len(backbone.parts()))
    for alpha, beta, theta_min in POINTS:
        point = OperatingPoint(alpha=alpha, beta=beta, theta_min=theta_min)
        name = f"{alpha:g}, {beta:g}, {theta_min:g}"
        yield "ATM", name, plan_for(backbone, AtmSettings(point=point))
    for r in TOME:
        yield "ToMe", f"r = {r}", plan_for(backbone, TomeSettings(r=(r,)))


def measure(
    model: LoadedModel, plan: MergePlan, pixels: np.ndarray, right: torch.Tensor
) -> dict[str, Any]:
    """GFLOPs and top-1 of one point."""
    hits, spent = 0, 0.0
    for i in range(0, len(pixels), BATCH):
        image = torch.from_numpy(normalize(pixels[i : i + BATCH], model.preprocessing))
        trace = run_reference(model.backbone, plan, image)
        hits += int((trace.outputs[LOGITS].argmax(dim=1) == right[i : i + BATCH]).sum())
        spent += float(trace_gmacs(model.backbone, trace, plan.merges).sum())
    return {"gflops": spent / len(pixels), "top1": share_facts(hits, len(pixels))}


def measured(name: str, weights: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All points of one model, those of earlier runs included."""
    store = args.out / "curves.json"
    known = json.loads(store.read_text()) if store.is_file() else {}
    model = load_model(resolve(Choice(model=name, weights=weights)).model)
    samples = open_samples(str(args.images), model.backbone.classes, model.labels)
    order = np.random.default_rng(0).permutation(len(samples))
    key = f"{name} {model.weights['sha256'][:12]} {samples.digest()[:12]}"
    rows = known.setdefault(key, {})
    pixels: np.ndarray | None = None
    for method, point, plan in plans(model):
        if f"{method} {point}" in rows:
            continue
        if pixels is None:
            files = [args.images / samples.reader.name(int(i)) for i in order]
            pixels = np.stack([read_image(file, model.preprocessing) for file in files])
        right = torch.tensor([samples.right[int(i)][0] for i in order])
        row = {"method": method, "point": point, **measure(model, plan, pixels, right)}
        if method == "unmerged":
            row["gflops"] = unmerged_gmacs(model.backbone)
        rows[f"{method} {point}"] = row
        text = json.dumps(known, indent=1) + "\n"
        put_files(args.out, {store.name: text.encode()})
        low, high = row["top1"]["low"], row["top1"]["high"]
        print(
            f"{name:30s} {method:8s} {point:22s} {row['gflops']:.3f} GFLOPs  top-1 "
            f"{row['top1']['percent']:.1f} ({low:.1f} to {high:.1f})",
            flush=True,
        )
    return list(rows.values())


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One panel a model; colour-blind safe, told apart by marker and line as well."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(4.4 * len(curves), 3.6), dpi=110)
    for panel, (name, rows) in zip(np.atleast_1d(panels), curves.items(), strict=True):
        for method, colour, style in (
            ("ATM", "#0072b2", "o-"),
            ("ToMe", "#d55e00", "s--"),
            ("unmerged", "#1b1b1b", "D"),
        ):
            some = sorted((r for r in rows if r["method"] == method), key=lambda r: r["gflops"])
            x = np.array([r["gflops"] for r in some])
            y = np.array([r["top1"]["percent"] for r in some])
            bars = np.array([[r["top1"]["low"] for r in some], [r["top1"]["high"] for r in some]])
            panel.errorbar(
                x,
                y,
                yerr=np.abs(bars - y),
                fmt=style,
                color=colour,
                label=method,
                markersize=4,
                elinewidth=0.6,
                linewidth=1.4,
                alpha=0.9,
            )
        panel.set(title=name, xlabel="GFLOPs an image", ylabel="top-1 %")
        panel.grid(alpha=0.3)
    np.atleast_1d(panels)[-1].legend(loc="lower right")
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    put_files(path.parent, {path.name: data.getvalue()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", required=True, metavar="NAME=WEIGHTS")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/curves"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        refuse_loss(args.out, ["curves.json", "accuracy.png"])
    except OutputError as error:
        raise SystemExit(str(error)) from None
    curves = {}
    for text in args.model:
        name, _, weights = text.partition("=")
        curves[name.removeprefix("timm:")] = measured(name, weights, args)
    draw(curves, args.out / "accuracy.png")
    print(json.dumps({name: len(rows) for name, rows in curves.items()}))


if __name__ == "__main__":
    main()
