"""Measure everything that the README and docs/results.md state, and write it down.

    python tools/measure.py --quick
    python tools/measure.py --weights deit_t=deit_tiny.safetensors --images imagenet/val

fidelity    presets against the unmerged model by the eager reference: top-1, agreement, KL, GFLOPs
embeddings  DeiT-T's features at every row of table A2: cosine and nearest neighbours kept
coverage    models and policies: exported, and every comparison of the parity ladder
speed       in ONNX Runtime at one and two threads, every policy in turn with the unmerged export
cpus        the same on ONNX Runtime and OpenVINO in every precision (in the long form alone)
precision   graphs below FP32 against FP32, as their exports judge them
engines     TensorRT-RTX engines: built, with their structure (left out where it is not installed)
pytorch     `atm_export.merged` beside the unmerged model and a plain merge by scatter

Each becomes one JSON file in --out with machine, versions, date, commit and how busy the machine
was, in the form that tools/results.py checks; tools/draw_tables.py draws the tables of the
documentation from them.
Accuracy needs --images (class folders of ImageNet) and --weights; without them the demo and its
held-out digits are measured. Models without weights run with random ones, frozen to the paper's
GFLOPs. --quick takes the models of --weights alone (else the demo), their default preset and few
rounds: minutes. --called says what the images are, as tables should say it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import embedding_rows
import numpy as np
import torch
from pytorch_speed import rows_of
from results import FOLDER, KINDS, Embeddings, busy_cores, circumstances, text_of, units

from atm_export import demo
from atm_export.cli import main as atm_export
from atm_export.config import ModelSpec
from atm_export.measure.accuracy.divergence import Unmerged, divergence, run_unmerged
from atm_export.measure.data.whole import DataPlace, open_set, pixels_of
from atm_export.model.backbone import LoadedModel
from atm_export.model.flops import unmerged_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config, model_names
from atm_export.preprocess import crop
from atm_export.runs.reading import open_run

DEMO = "demo"
MERGES = ("adaptive", "per-image", "frozen")
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Wish:
    """weights: files by model; images, called: a folder and what it is; work: where runs lie."""

    quick: bool
    weights: dict[str, Path]
    images: Path | None
    called: str
    work: Path

    def models(self) -> list[str]:
        """What is measured: what has weights, else the demo; in the long form every model too."""
        own = list(self.weights) or [DEMO]
        return own if self.quick else list(dict.fromkeys([*own, DEMO, *model_names()]))

    def weights_of(self, model: str) -> str:
        return str(self.weights.get(model, "pretrained" if model == DEMO else "random"))

    def run(self, model: str, merge: str, *more: str) -> Path:
        """A run folder, exported once; `more` adds engines or low precision to it."""
        out = self.work / f"{model.replace(':', '_')}-{merge}"
        given = ["--weights", self.weights_of(model), "--merge", merge, "--no-benchmark"]
        if self.images is not None:
            given += ["--images", str(self.images)]
        command(model, *given, *more, "--out", str(out))
        return out

    def facts(self, model: str, sha256: str) -> dict[str, str]:
        """Model and weights, as rows say them."""
        given = model in self.weights
        return {"model": model, "weights": sha256[:12] if given else self.weights_of(model)}


def command(*words: str) -> None:
    """`atm-export`, in this process; SystemExit with its code where it fails."""
    print("atm-export", *words, file=sys.stderr, flush=True)
    with redirect_stdout(sys.stderr):
        code = atm_export(list(words))
    if code:
        raise SystemExit(code)


def fidelity(wish: Wish) -> Rows:
    """Presets of the models whose weights are here, on labelled images."""
    for name in wish.weights if wish.images else [DEMO]:
        config = load_model_config(name)
        model = load_model(ModelSpec(name=name, config=config, weights=wish.weights_of(name)))
        known, images = _known(wish, model)
        presets = {k: p for k, p in config.presets.items() if not p.fine_tuned}
        if wish.quick:
            usual = str(config.default_preset)
            presets = {usual: presets[usual]}
        for preset, settings in presets.items():
            plan = plan_for(model.backbone, settings.chosen)
            found = divergence(model, plan, known).facts()
            yield {
                **wish.facts(name, str(model.weights["sha256"])),
                "preset": preset,
                "method": settings.chosen.name,
                "gflops": found["gflops"],
                "unmerged_gflops": round(unmerged_gmacs(model.backbone), 4),
                "top1": found["top1"],
                "unmerged_top1": known.top1(),
                "agreement": found["agreement"],
                "kl": {"value": found["kl"].pop("mean"), **found["kl"]},
                "images": images,
            }


def embeddings(wish: Wish) -> Rows:
    """Rows of table A2 of the models whose weights and images are here."""
    for name in wish.weights if wish.images else ():
        assert wish.images is not None
        weights = wish.weights_of(name)
        yield from embedding_rows.rows_of(name, weights, wish.images, wish.called, wish.quick)


def _known(wish: Wish, model: LoadedModel) -> tuple[Unmerged, str]:
    """The unmerged model on the images, and what they are."""
    if wish.images is None:
        pictures, labels = demo.heldout()
        pixels = np.stack([crop(each, model.preprocessing) for each in pictures])
        known = run_unmerged(model, pixels, torch.from_numpy(labels))
        return known, f"{len(pixels)} held-out digits"
    place = DataPlace(str(wish.images))
    samples, labelled = open_set(place, model)
    known = run_unmerged(model, *pixels_of(samples, labelled, place, model, workers=0))
    return known, f"{len(known.pixels)} {wish.called}"


def coverage(wish: Wish) -> Rows:
    """Exports whose parity ladder is climbed."""
    for model in wish.models():
        for merge in MERGES[:1] if wish.quick else MERGES:
            run = wish.run(model, merge)
            report = json.loads((run / "report.json").read_text(encoding="utf-8"))
            parity = report["parity"]
            names = ("proven", "inputs", "comparisons", "decisions_that_differ", "logits_max_abs")
            yield {
                **wish.facts(model, report["weights"]["sha256"]),
                "method": report["method"]["name"],
                "merge": merge,
                **{name: parity[name] for name in names},
            }


def speed(wish: Wish) -> Rows:
    """Policies at one and two threads, batches 1 and 8 (and 32)."""
    for model in wish.models():
        run = wish.run(model, "adaptive")
        told = open_run(run).manifest
        for threads in (1, 2):
            sizes, rounds = ("1,8", "7") if wish.quick else ("1,8,32", "15")
            given = ["--threads", str(threads), "--batches", sizes, "--rounds", rounds]
            if wish.images is not None:
                given += ["--images", str(wish.images)]
            busy = busy_cores()
            command("bench", str(run), *given)
            found = json.loads((run / "bench.json").read_text(encoding="utf-8"))
            for row in found["rows"]:
                yield {
                    **wish.facts(model, told.weights.sha256),
                    "preset": str(told.method.preset),
                    "policy": row["candidate"],
                    "threads": threads,
                    "batch": row["batch"],
                    "median_ms": row["median_ms"],
                    "images_per_s": row["images_per_s"],
                    "speedup": _ratio(row.get("speedup")),
                    "flops_ratio": row["flops_ratio"],
                    "images": wish.called if wish.images else found["source"],
                    "busy": busy,
                }


def cpus(wish: Wish) -> Rows:
    """Every policy, and few merges at the same cost, on the backends and in the precisions of
    CPUs."""
    there = [name for name in ("onnxruntime", "openvino") if find_spec(name)]
    for model in [] if wish.quick else wish.weights:
        run = wish.run(model, "adaptive")
        told = open_run(run).manifest
        sparse = "sparse-0.90" in load_model_config(model).presets
        for threads in (1, 2):
            given = ["--threads", str(threads), "--batches", "1,8,32", "--rounds", "9"]
            given += ["--backends", ",".join(there), "--precisions", "all"]
            given += ["--against", "sparse-0.90"] if sparse else []
            if wish.images is not None:
                given += ["--images", str(wish.images)]
            busy = busy_cores()
            command("bench", str(run), *given)
            found = json.loads((run / "bench.json").read_text(encoding="utf-8"))
            for row in found["rows"]:
                policy = str(row["candidate"]).removesuffix(f" {row['precision']}")
                yield {
                    **wish.facts(model, told.weights.sha256),
                    "preset": str(told.method.preset),
                    **{key: row[key] for key in ("backend", "precision", "batch")},
                    **{key: row[key] for key in ("images_per_s", "flops_ratio")},
                    "policy": policy,
                    "threads": threads,
                    **{key: _ratio(row.get(key)) for key in ("speedup", "over_fp32")},
                    "images": wish.called if wish.images else found["source"],
                    "busy": busy,
                }


def _ratio(found: dict[str, float] | None) -> dict[str, float] | None:
    return found and {"value": found["median"], **_interval(found)}


def _interval(found: dict[str, float]) -> dict[str, float]:
    return {"low": found["low"], "high": found["high"]}


def precision(wish: Wish) -> Rows:
    """int8 of ONNX Runtime, and the typed graphs of engines."""
    for model in wish.models()[:1] if wish.quick else [*wish.weights, DEMO]:
        run = wish.run(model, "adaptive", "--backend", "onnxruntime", "--precision", "int8")
        if find_spec("tensorrt_rtx"):
            run = _with_engines(wish, model, "adaptive")
        told = open_run(run).manifest
        for name, entry in {**told.low_precision, **told.engines}.items():
            yield _judged(wish.facts(model, told.weights.sha256), name, entry.document)


def _judged(facts: dict[str, str], name: str, told: dict[str, Any]) -> dict[str, Any]:
    judged = told["validation"]
    return {
        **facts,
        "artifact": name,
        "precision": told["precision"],
        "images": judged["images"],
        "cosine_of_nine_tenths": judged["cosine_logits_of_nine_tenths"],
        "min_cosine": judged["min_cosine_logits"],
        "top1_agreement": judged["top1_agreement"],
        "tokens_differing": judged["tokens_differing"],
    }


def engines(wish: Wish) -> Rows:
    """Ahead of time, by TensorRT-RTX; nothing is run."""
    for model in (wish.models() if find_spec("tensorrt_rtx") else [])[: 1 if wish.quick else None]:
        for merge in MERGES[:1] if wish.quick else ("adaptive", "frozen"):
            run = _with_engines(wish, model, merge)
            told = open_run(run).manifest
            for name, facts in told.document["engines"].items():
                yield {
                    **wish.facts(model, told.weights.sha256),
                    "merge": merge,
                    "artifact": name,
                    **{key: facts[key] for key in ("precision", "tensorrt", "sms", "bytes")},
                    "activation_bytes": facts["build"]["activation_bytes"],
                }


def _with_engines(wish: Wish, model: str, merge: str) -> Path:
    precisions = "fp16" if wish.quick else "fp32,fp16,bf16,int8"
    return wish.run(model, merge, "--trt", "--precision", precisions)


def pytorch(wish: Wish) -> Rows:
    """Merging in PyTorch, in evaluation and in training."""
    for name in wish.models()[:1] if wish.quick else [*wish.weights, DEMO]:
        config = load_model_config(name)
        model = load_model(ModelSpec(name=name, config=config, weights=wish.weights_of(name)))
        batches, rounds = ((8,), 6) if wish.quick else ((1, 8, 32), 18)
        facts = wish.facts(name, str(model.weights["sha256"]))
        yield from rows_of(model, batches, rounds, facts)


MEASUREMENTS: dict[str, Callable[[Wish], Rows]] = {
    "fidelity": fidelity,
    "embeddings": embeddings,
    "coverage": coverage,
    "speed": speed,
    "cpus": cpus,
    "precision": precision,
    "engines": engines,
    "pytorch": pytorch,
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="minutes: few models, the default preset, few rounds")
    add("--weights", action="append", default=[], metavar="NAME=FILE", help="may be given again")
    add("--images", type=Path, metavar="DIR", help="labelled images, in class folders")
    add("--called", default="given images", help="what the images are, for tables")
    add("--only", default=",".join(MEASUREMENTS), help="a list (default: %(default)s)")
    add("--out", type=Path, default=FOLDER, help="(default: docs/results)")
    args = parser.parse_args(arguments)
    args.only = args.only.split(",")
    for name in args.only:
        if name not in MEASUREMENTS:
            parser.error(f"--only: unknown '{name}'; known: {', '.join(MEASUREMENTS)}")
    pairs = [text.partition("=") for text in args.weights]
    if any(not name or not Path(file).is_file() for name, _, file in pairs):
        parser.error("--weights: give NAME=FILE, a file that exists")
    if args.images is not None and not args.images.is_dir():
        parser.error(f"--images: {args.images} is no folder")
    args.weights = {name: Path(file) for name, _, file in pairs}
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        wish = Wish(args.quick, args.weights, args.images, args.called, Path(work))
        for name in args.only:
            busy = busy_cores()
            rows = list(MEASUREMENTS[name](wish))
            facts = {**circumstances(args.quick, busy), "rows": rows}
            if name == "cpus":
                facts["units"] = units()
            found = KINDS[name].model_validate(facts)
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{name}.json").write_text(text_of(found), encoding="utf-8")
            if isinstance(found, Embeddings) and found.rows and args.out == FOLDER:
                text = embedding_rows.picture(found.rows)
                embedding_rows.PICTURE.write_text(text, encoding="utf-8")
            print(f"{name}.json: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    main()
