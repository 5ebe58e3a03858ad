"""How much of what methods save arrives on the clock, in ONNX Runtime, beside the unmerged export.

    python tools/method_speed.py build/compare-deit_t --weights deit_tiny.safetensors --images DIR

Takes the runs of a comparison (`atm-export compare MODEL`). All of them and the unmerged export run
in turn in one process, on one thread, on batches of images; each repeat opens them anew. What
counts is the CPU time of that thread, which other programs change less than they do the clock. For
each repeat: the median of paired ratios unmerged / method, and the ratio of the least times, which
other programs disturbed least (for each batch of images, its mean). Writes speed.json beside
compare.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.threads import use_threads
from atm_export.graph.optimize import with_outputs
from atm_export.graph.saving import in_memory
from atm_export.inputs import Pixels
from atm_export.measure.data.images import load_images
from atm_export.measure.speed.latency import interleave
from atm_export.runs.graphs import SavedGraph, read_graph
from atm_export.runs.reading import open_run
from atm_export.runs.writing import versions
from atm_export.subject import exported_subject
from atm_export.tasks.base import names

UNMERGED = "unmerged"
FEEDS = 2  # different batches of images, taken in turn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="of the comparison")
    add("--weights", default="pretrained")
    add("--images", required=True)
    add("--batch", type=int, default=8, help="one that the comparison timed")
    add("--rounds", type=int, default=10, help="counted rounds of a repeat")
    add("--repeats", type=int, default=5)
    args = parser.parse_args()
    facts = json.loads((args.folder / "compare.json").read_text(encoding="utf-8"))
    use_threads(1)
    graphs, pixels = prepared(args.folder, facts["rows"], args.weights, args.images)
    ratios: dict[str, list[float]] = {row["name"]: [] for row in facts["rows"]}
    least: dict[str, list[float]] = {row["name"]: [] for row in facts["rows"]}
    for i in range(args.repeats):
        for name, found in measured(graphs, batches(pixels, args.batch), args.rounds).items():
            ratios[name].append(found[0])
            least[name].append(found[1])
        print(f"repeat {i + 1} of {args.repeats}", flush=True)
    flops = {
        row["candidate"]: row["flops_ratio"]
        for row in facts["latency"]["rows"]
        if row["batch"] == args.batch
    }
    written = {
        "model": facts["model"],
        "batch": args.batch,
        "rounds": args.rounds,
        "repeats": args.repeats,
        "rows": [
            {
                **{key: row[key] for key in ("name", "method", "settings")},
                "flops_ratio": flops[row["name"]],
                "ratios": ratios[row["name"]],
                "least": least[row["name"]],
            }
            for row in facts["rows"]
        ],
        "versions": versions(),
    }
    text = json.dumps(written, indent=1, sort_keys=True) + "\n"
    (args.folder / "speed.json").write_text(text, encoding="utf-8")


def prepared(
    folder: Path, rows: Sequence[Mapping[str, Any]], weights: str, images: str
) -> tuple[dict[str, SavedGraph], Pixels]:
    """Graphs by name, the unmerged one first, and images as they take them [k, C, H, W]."""
    runs = {row["name"]: open_run(folder / row["run"]) for row in rows}
    one = next(iter(runs.values()))
    subject = exported_subject(one.manifest, f"{one.folder}/manifest.json", weights)
    plain = with_outputs(subject.graph(subject.unmerged), names(subject.model.backbone.outputs))
    loaded = load_images(images, subject.model.preprocessing, subject.model.own_images)
    graphs = {name: read_graph(run, "model.onnx") for name, run in runs.items()}
    return {UNMERGED: in_memory(plain), **graphs}, subject.feed(loaded.pixels)


def batches(pixels: Pixels, size: int) -> list[Pixels]:
    count = max(1, min(FEEDS, len(pixels) // size))
    return [pixels[np.arange(i * size, (i + 1) * size) % len(pixels)] for i in range(count)]


def measured(
    graphs: Mapping[str, SavedGraph], chunks: Sequence[Pixels], rounds: int
) -> dict[str, tuple[float, float]]:
    """Times as fast as the unmerged export, by name: median of pairs, and by the least times."""
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(OnnxRuntimeRunner(graph, threads=1))
            for name, graph in graphs.items()
        }
        feeds = [dict.fromkeys(runners, chunk) for chunk in chunks]
        seconds = interleave(runners, feeds, rounds, clock=time.process_time)
    base = np.asarray(seconds.pop(UNMERGED))
    return {name: _ratios(base, np.asarray(own), len(chunks)) for name, own in seconds.items()}


def _ratios(base: Any, own: Any, feeds: int) -> tuple[float, float]:
    least = [base[i::feeds].min() / own[i::feeds].min() for i in range(feeds)]
    return round(float(np.median(base / own)), 3), round(float(np.mean(least)), 3)


if __name__ == "__main__":
    main()
