"""`atm-export bench`: is it really faster here, and what should be deployed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from atm_export.backends import backends
from atm_export.backends.threads import use_threads
from atm_export.bounds import MAX_BATCH, MAX_ROUNDS, checked_threads, numbers_of, whole
from atm_export.errors import ConfigError, EngineMismatchError, MissingDependencyError
from atm_export.measure.data.images import load_images
from atm_export.measure.speed.bench import Sweep
from atm_export.measure.speed.bench import bench as measure
from atm_export.measure.speed.candidates import (
    EAGER,
    FP32,
    PRECISIONS,
    backend_names,
    candidates,
    in_precisions,
)
from atm_export.numbers import Whole
from atm_export.report.documents import BENCH_FILE
from atm_export.report.results import add_results, open_with_report, refuse_loss
from atm_export.subject import exported_subject

MOST_CORES = 4096
ALL = "all"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured, on what and how often."""

    against: Annotated[
        str | None,
        Parameter(
            help="Compare with another run folder, a preset of the model (sparse-0.90), ToMe as "
            "tome:8, or none (default)."
        ),
    ] = None
    backends: Annotated[
        str,
        Parameter(
            help="A list of onnxruntime, openvino, eager, torch.compile, tensorrt, ..., or all: "
            "those that are here."
        ),
    ] = "onnxruntime"
    precisions: Annotated[
        str,
        Parameter(
            help="fp32, bf16, int8, or all. Below fp32 every candidate is measured in the form of "
            "each backend that has it (bf16: openvino; int8: onnxruntime, openvino), the run's own "
            "file where it has one; the others are calibrated on the images."
        ),
    ] = FP32
    batches: Annotated[str, Parameter(help="Batch sizes, a list.")] = "1,8,32"
    rounds: Annotated[Whole, Parameter(help="Counted rounds at each batch.")] = 15
    images: Annotated[
        str | None,
        Parameter(help="Folder of images to run (up to 64; else photographs that ship)."),
    ] = None
    policies: Annotated[
        bool,
        Parameter(
            help="Measure adaptive, frozen and per-image merging, not only the run's own.",
            negative="--no-policies",
        ),
    ] = True
    cores: Annotated[
        str | None, Parameter(help="Bind the process to these CPU cores, a list (0,1).")
    ] = None
    threads: Annotated[Whole, Parameter(help="CPU threads (0: one a core).")] = 0
    weights: Annotated[
        str | None, Parameter(help="The export's weights, where they are no longer in their place.")
    ] = None

    def sweep(self) -> Sweep:
        """What to measure; ConfigError for what cannot be meant."""
        checked_threads(self.threads, "--threads")
        rounds = whole(self.rounds, "--rounds", 1, MAX_ROUNDS)
        batches = numbers_of(self.batches, "--batches", 1, MAX_BATCH)
        return Sweep(_backends(self.backends), batches, rounds)

    def in_precisions(self) -> tuple[str, ...]:
        """Precisions, each once; ConfigError for one that is unknown."""
        return _precisions(self.precisions)

    def bind(self) -> int:
        """Take the cores and threads asked for; returns how many threads run."""
        if self.cores is not None:
            _bind(numbers_of(self.cores, "--cores", 0, MOST_CORES))
        bound = len(os.sched_getaffinity(0)) if self.cores else 0
        count = use_threads(self.threads or bound)
        torch.set_num_threads(count)
        return count


USUAL = BenchOptions()


def bench(run: Path, /, *, options: BenchOptions = USUAL) -> int:
    """Compare a run's speed with the unmerged model's, and recommend what to deploy.

    All candidates run in turn in one process on the same batches, after a warm-up; the speed-up is
    the median of paired ratios with its 95 % interval. The unmerged model, exported the same way,
    is always the baseline. Writes bench.json into the run folder, draws report.html anew, and
    ends with one JSON line.

        atm-export bench build/deit_s-a2-3.23 --images photos --batches 1,8
        atm-export bench build/deit_s-a2-3.23 --against tome:13 --backends onnxruntime,eager
    """
    sweep, precisions = options.sweep(), options.in_precisions()
    opened = open_with_report(run, BENCH_FILE)
    refuse_loss(run, [BENCH_FILE])
    count = options.bind()
    console = Console(stderr=True)
    with console.status("loading the model") as status:
        subject = exported_subject(opened.manifest, f"{run}/manifest.json", options.weights)
        how, own = subject.model.preprocessing, subject.model.own_images
        found = load_images(options.images, how, own)
        pixels = found.pixels[:64]
        chosen = candidates(opened, subject, pixels, options.against, options.policies)
        chosen = in_precisions(chosen, precisions, pixels)
        facts = measure(chosen, pixels, sweep, count, status.update)
    facts |= {"model": subject.model.name, "source": found.source}
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    add_results(run, {BENCH_FILE: text.encode()})
    _print(Console(width=max(120, Console().width)), facts)
    print(json.dumps(facts, sort_keys=True))
    return 0


def _print(console: Console, facts: dict[str, Any]) -> None:
    affinity = ",".join(map(str, facts["cpu_affinity"])) or "all"
    table = Table(box=box.SIMPLE, title_justify="left", title=f"{facts['model']}, latency a batch")
    for name in ("backend", "candidate", "batch", "median ms", "p90", "p99", "images/s"):
        table.add_column(name, justify="left" if name in ("backend", "candidate") else "right")
    table.add_column("speed-up (95 %)")
    table.add_column("over fp32")
    table.add_column("FLOPs ratio", justify="right")
    for row in facts["rows"]:
        speed, over = row.get("speedup"), row.get("over_fp32")
        table.add_row(
            row["backend"],
            row["candidate"],
            str(row["batch"]),
            *(f"{row[name]:.1f}" for name in ("median_ms", "p90_ms", "p99_ms", "images_per_s")),
            f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})" if speed else "",
            f"{over['median']:.2f} ({over['low']:.2f} to {over['high']:.2f})" if over else "",
            f"{row['flops_ratio']:.2f}",
        )
    console.print(table)
    for row in facts["missing"]:
        console.print(
            f"not measured: {row['candidate']} in {row['backend']}: {row['reason']}",
            highlight=False,
            markup=False,
        )
    console.print(
        f"{facts['threads']} threads, cores {affinity}, {facts['images']} {facts['source']}",
        highlight=False,
    )
    console.print(facts["recommendation"], highlight=False, style="bold", soft_wrap=True)


def _backends(text: str) -> tuple[str, ...]:
    if text == ALL:
        return tuple(name for name in backend_names() if name in EAGER or _is_here(name))
    return _listed("--backends", text, backend_names())


def _precisions(text: str) -> tuple[str, ...]:
    return tuple(PRECISIONS) if text == ALL else _listed("--precisions", text, PRECISIONS)


def _listed(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Names of a list, each once; ConfigError for one that is not `known`."""
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"{option}: unknown '{unknown[0]}'; known: {', '.join(known)}")
    return names


def _is_here(name: str) -> bool:
    """Whether a backend runs graphs on this machine."""
    try:
        backends[name].require()
    except (MissingDependencyError, EngineMismatchError):
        return False
    return True


def _bind(cores: tuple[int, ...]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("--cores: this system does not bind processes to cores")
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        raise ConfigError(f"--cores {','.join(map(str, cores))}: {error.strerror}") from error
