"""Speed of merged exports against plain timm: does the saving in FLOPs arrive on the clock?

    python tools/bench_speed.py --model deit_t --weights deit_tiny.safetensors --images DIR
    python tools/bench_speed.py --model deit_s --weights random --candidates frozen --images DIR

Candidates
----------
timm
    The baseline, always measured: the model's own unmerged forward through
    `torch.onnx.export(dynamo=True)`, dynamic batch, opset 20, the exporter's own optimisation, as a
    user would export plain timm. None of our passes.
none
    The same unmerged model as `atm-export MODEL --method none` exports it.
atm
    Adaptive merging at a preset: thresholds decide at run time, the batch shares r.
frozen
    A fixed r per block: calibrated on the images; with random weights, which decide nothing worth
    calibrating on, spread evenly to meet the GFLOPs that the paper gives for the preset.

What is measured
----------------
All candidates run in turn, each behind every other one equally often, in one process that holds
ONNX Runtime, on batches of real images; the first two rounds are not counted. Each has threads of
its own, which sleep while another runs. Each count in `--threads` gets a process of its own.

For each candidate and batch: median ms per image; speed-up, the median of paired ratios
timm / candidate (a pair: same round, same images), with its quartiles; FLOPs ratio, the unmerged
model's multiply-adds over the candidate's on exactly these images in exactly these batches, counted
by the eager reference; and realised, speed-up / FLOPs ratio: 1 where the whole saving arrives.

`--rounds` counts rounds at batches above 1; batch 1 gets four times as many, for one image takes
little time and images differ in how much they merge. Rounds take the image batches in turn.

CPU share: the CPU time that the measuring process got over what its threads could have had. Where
it is far below 1 other programs had the cores, and figures deserve less trust.

Prints a table, and as its last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.threads import use_threads
from atm_export.choice import Choice
from atm_export.config import RunConfig
from atm_export.errors import AtmExportError, ConfigError
from atm_export.graph.assemble import onnx_from_model
from atm_export.graph.optimize import optimize, with_outputs
from atm_export.graph.saving import graph_from_file, in_memory, written
from atm_export.inputs import normalize
from atm_export.measure.data.images import load_images
from atm_export.measure.speed import latency
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.model.calibrate import frozen_gmacs, measured_r, paper_r
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.resolving import resolve
from atm_export.runs.writing import versions
from atm_export.tasks.base import names

BASELINE = "timm"
CANDIDATES = (BASELINE, "none", "atm", "frozen")
OPSET = 20
SINGLE_IMAGE_ROUNDS = 4  # times --rounds, at batch 1

Floats = NDArray[np.float32]
Seconds = dict[str, list[float]]  # by candidate, one a round
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is measured: the model, a plan for each candidate, and the images, normalised.

    feeds: by batch size, [k, batch, 3, H, W]; source: what the images are.
    """

    config: RunConfig
    model: LoadedModel
    plans: dict[str, MergePlan]
    feeds: dict[int, Floats]
    source: str


@dataclass(frozen=True)
class Measured:
    """What one process found: seconds by batch size, and its CPU share (0..1)."""

    seconds: dict[int, Seconds]
    cpu_share: float


class Plain(nn.Module):
    """The model's own forward pass, nothing else."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(self, image: Tensor) -> Tensor:
        return self.backbone.plain(image)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="deit_t", help="as atm-export takes it (default: %(default)s)")
    add("--weights", default="pretrained", help="pretrained, a file, or random")
    add("--preset", help="operating point of atm and frozen (default: the model's own)")
    add("--images", required=True, metavar="DIR", help="folder of images; up to 64 are used")
    add("--batches", type=_counts, default=[1, 8, 32], help="batch sizes (default: 1,8,32)")
    add("--threads", type=_counts, default=[2, 1], help="thread counts in turn (default: 2,1)")
    add("--rounds", type=int, default=12, help="counted rounds, four times as many at batch 1")
    add("--candidates", default=",".join(CANDIDATES), help="a list (default: %(default)s)")
    add("--measure", type=Path, help=argparse.SUPPRESS)  # how the tool calls itself
    args = parser.parse_args(argv)
    chosen = args.candidates.split(",")
    unknown = [name for name in chosen if name not in CANDIDATES]
    if unknown:
        parser.error(f"--candidates: unknown '{unknown[0]}'; known: {', '.join(CANDIDATES)}")
    if args.rounds < 1:
        parser.error("--rounds: give 1 or more")
    args.candidates = [name for name in CANDIDATES if name in chosen or name == BASELINE]
    return args


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError
    return counts


_counts.__name__ = "list of whole numbers from 1"  # argparse puts the name into its message


def rounds_at(batch: int, rounds: int) -> int:
    """Counted rounds at this batch size."""
    return rounds * SINGLE_IMAGE_ROUNDS if batch == 1 else rounds


def prepare(args: argparse.Namespace) -> Subject:
    """Load model and images, and plan the merges of every candidate."""
    config = resolve(
        Choice(model=args.model, weights=args.weights, preset=args.preset, images=args.images)
    )
    model = load_model(config.model)
    images = load_images(args.images, model.preprocessing, model.own_images)
    pixels = normalize(images.pixels, model.preprocessing)
    return Subject(
        config,
        model,
        {name: plan_candidate(name, config, model, pixels) for name in args.candidates},
        {batch: _in_batches(pixels, batch, args.rounds) for batch in args.batches},
        f"{images.source}, {len(pixels)}",
    )


def plan_candidate(name: str, config: RunConfig, model: LoadedModel, pixels: Floats) -> MergePlan:
    """What each block of a candidate does."""
    backbone = model.backbone
    depth = len(backbone.parts())
    if name in (BASELINE, "none"):
        return MergePlan.unmerged(depth)
    plan = plan_for(backbone, config.method)
    return plan if name == "atm" else freeze(config, model, plan, pixels)


def freeze(config: RunConfig, model: LoadedModel, plan: MergePlan, pixels: Floats) -> MergePlan:
    """The plan with fixed r: measured on the images, or from the paper where weights are random."""
    if not model.weights.get("meaningless_accuracy"):
        return plan.frozen(measured_r(model.backbone, plan, [torch.from_numpy(pixels)]))
    preset = config.model.config.presets.get(config.method.preset or "")
    if preset is None or preset.gflops is None:
        raise ConfigError(
            "random weights: the candidate frozen needs a preset whose GFLOPs the paper gives; "
            "give --preset, or leave frozen out of --candidates"
        )
    return plan.frozen(paper_r(model.backbone, plan, preset.gflops))


def _in_batches(pixels: Floats, batch: int, rounds: int) -> Floats:
    """[k, batch, 3, H, W]: as many different batches as there are rounds or images for."""
    k = max(1, min(len(pixels) // batch, rounds_at(batch, rounds)))
    return pixels[np.arange(k * batch) % len(pixels)].reshape(k, batch, *pixels.shape[1:])


def export_candidate(name: str, subject: Subject) -> ir.Model:
    """The graph of one candidate: input `image`, outputs as its task has them."""
    if name == BASELINE:
        return export_timm(subject.model)
    model, plan = subject.model, subject.plans[name]
    traced = onnx_from_model(model.backbone, plan, model.input(), opset=OPSET)
    return with_outputs(optimize(traced), names(model.backbone.outputs))


def export_timm(model: LoadedModel) -> ir.Model:
    """The model's own forward through torch.onnx.export with its defaults."""
    height, width = model.backbone.image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Plain(model).eval(),
            (torch.randn(2, 3, height, width),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            input_names=["image"],
            output_names=names(model.backbone.outputs),
            verbose=False,
        )
    assert program is not None
    return program.model


def gmacs_at(subject: Subject, name: str, batch: int, rounds: int) -> float:
    """GFLOPs an image over the counted rounds, by the eager reference on the same batches."""
    backbone, plan, feeds = subject.model.backbone, subject.plans[name], subject.feeds[batch]
    if not plan.merges:
        return unmerged_gmacs(backbone)
    if not plan.adaptive:
        return frozen_gmacs(backbone, plan, [block.r or 0 if block else 0 for block in plan.blocks])
    spent = [
        float(trace_gmacs(backbone, run_reference(backbone, plan, torch.from_numpy(feed))).mean())
        for feed in feeds
    ]
    return float(np.mean([spent[i % len(spent)] for i in range(rounds_at(batch, rounds))]))


def measure(folder: Path, args: argparse.Namespace) -> Measured:
    """Run the graphs in `folder` in turn on the batches that lie there."""
    (threads,) = args.threads
    use_threads(threads)
    seconds: dict[int, Seconds] = {}
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(
                OnnxRuntimeRunner(
                    in_memory(graph_from_file(folder / f"{name}.onnx")),
                    waiting="spin while running",
                )
            )
            for name in args.candidates
        }
        start, start_cpu = time.perf_counter(), time.process_time()
        for batch in args.batches:
            feeds = [dict.fromkeys(runners, feed) for feed in np.load(folder / f"{batch}.npy")]
            seconds[batch] = latency.interleave(runners, feeds, rounds_at(batch, args.rounds))
        share = (time.process_time() - start_cpu) / (time.perf_counter() - start) / threads
    return Measured(seconds, round(share, 2))


def measure_in_process(folder: Path, threads: int) -> Measured:
    """`measure` in a fresh process, with as many threads."""
    command = [sys.executable, __file__, *sys.argv[1:]]
    command += ["--measure", str(folder), "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise AtmExportError(f"measuring with {threads} threads failed, see above")
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = {int(batch): by_candidate for batch, by_candidate in found["seconds"].items()}
    return Measured(seconds, found["cpu_share"])


def compare(threads: int, batch: int, seconds: Seconds, gmacs: dict[str, float]) -> list[Row]:
    """One row a candidate."""
    base = np.asarray(seconds[BASELINE])
    rows = []
    for name, own in seconds.items():
        low, speedup, high = np.percentile(base / np.asarray(own), (25, 50, 75))
        flops_ratio = gmacs[BASELINE] / gmacs[name]
        rows.append(
            {
                "threads": threads,
                "batch": batch,
                "candidate": name,
                "rounds": len(own),
                "ms_per_image": round(1e3 * float(np.median(own)) / batch, 3),
                "speedup": round(float(speedup), 3),
                "speedup_quartiles": [round(float(low), 3), round(float(high), 3)],
                "gflops": round(gmacs[name], 4),
                "flops_ratio": round(flops_ratio, 3),
                "realised": round(float(speedup) / flops_ratio, 3),
            }
        )
    return rows


def draw(title: str, rows: Sequence[Row]) -> Table:
    """The rows as a table, ruled off where threads or batch change."""
    table = Table(title=title, title_justify="left")
    for name in ("threads", "batch", "candidate"):
        table.add_column(name)
    for name in ("ms/image", "speed-up", "quartiles", "FLOPs ratio", "realised"):
        table.add_column(name, justify="right")
    for i, row in enumerate(rows):
        following = rows[i + 1 : i + 2]
        low, high = row["speedup_quartiles"]
        table.add_row(
            str(row["threads"]),
            str(row["batch"]),
            row["candidate"],
            f"{row['ms_per_image']:.2f}",
            f"{row['speedup']:.2f}",
            f"{low:.2f}..{high:.2f}",
            f"{row['flops_ratio']:.2f}",
            f"{row['realised']:.2f}",
            end_section=bool(following) and following[0]["batch"] != row["batch"],
        )
    return table


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def facts(subject: Subject) -> dict[str, Any]:
    """What was measured."""
    method, frozen = subject.config.method, subject.plans.get("frozen")
    return {
        "benchmark": "speed",
        "model": subject.model.name,
        "weights": subject.model.weights,
        "preset": method.preset,
        "operating_point": method.point.model_dump() if method.point else None,
        "frozen_r": [b.r if b else None for b in frozen.blocks] if frozen else None,
        "images": subject.source,
        "unmerged_gflops": round(unmerged_gmacs(subject.model.backbone), 4),
    }


def bench(args: argparse.Namespace, say: Console) -> None:
    """Export, measure, and print table and JSON line."""
    about = {"machine": machine()}  # first: the load that others make, not ours
    subject = prepare(args)
    about = {**facts(subject), **about}
    if about["weights"].get("meaningless_accuracy") and "atm" in subject.plans:
        say.print("random weights: what the candidate atm merges means nothing; use frozen")
    rows: list[Row] = []
    shares: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench_speed-") as name:
        folder = Path(name)
        gmacs = write_files(folder, subject, args.rounds, say)
        for threads in args.threads:
            say.print(f"measuring with {threads} threads")
            found = measure_in_process(folder, threads)
            shares[threads] = found.cpu_share
            for batch, seconds in found.seconds.items():
                rows += compare(threads, batch, seconds, gmacs[batch])
    title = f"{about['model']} {about['preset'] or ''} on {about['machine']['cpu']}, CPU share "
    title += ", ".join(f"{share:.2f} with {threads} threads" for threads, share in shares.items())
    Console(width=max(100, Console().width)).print(draw(title, rows))
    print(json.dumps({**about, "cpu_share": shares, "rows": rows}))


def write_files(
    folder: Path, subject: Subject, rounds: int, say: Console
) -> dict[int, dict[str, float]]:
    """Put graphs and batches into `folder`; returns GFLOPs an image by batch and candidate."""
    for name in subject.plans:
        say.print(f"exporting {name}")
        written(export_candidate(name, subject), folder / f"{name}.onnx")
    gmacs = {}
    for batch, feeds in subject.feeds.items():
        say.print(f"counting FLOPs at batch {batch}")
        np.save(folder / f"{batch}.npy", feeds)
        gmacs[batch] = {name: gmacs_at(subject, name, batch, rounds) for name in subject.plans}
    return gmacs


def main() -> int:
    """Entry point; returns the exit code."""
    args = parse_args()
    try:
        if args.measure:
            print(json.dumps(asdict(measure(args.measure, args))))
        else:
            bench(args, Console(stderr=True, highlight=False))
    except AtmExportError as error:
        print(f"bench_speed: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
