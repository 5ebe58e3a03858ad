"""`atm-export compare`: methods side by side on your model and images."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from atm_export import loose_files, place
from atm_export.bounds import (
    MAX_BATCH,
    MAX_ROUNDS,
    MAX_WORKERS,
    checked_threads,
    numbers_of,
    whole,
)
from atm_export.choice import WantedTask
from atm_export.errors import ConfigError
from atm_export.measure.data.classes import ClassOrder
from atm_export.measure.data.whole import DataPlace
from atm_export.model_configs import file_name
from atm_export.numbers import Whole

if TYPE_CHECKING:
    from atm_export.compare import Contest

FILES = ("compare.json", "compare.svg", "report.html")


def _shown(text: str) -> Any:
    return Parameter(help=text)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared, and how it is timed."""

    methods: Annotated[
        tuple[str, ...],
        _shown(
            "all (every method), or a list of methods and presets, with settings behind colons "
            "(atm,evit:keep=0.7,zerotprune:blocks=2,5,8); may be given again. The first is what "
            "others are compared with."
        ),
    ] = ("all",)
    gflops: Annotated[
        float | None,
        _shown(
            "1e9 multiply-adds an image, for entries without settings: a preset of the model that "
            "states them, else found on the images (default: what the model's default preset "
            "states)."
        ),
    ] = None
    weights: Annotated[str, _shown("pretrained, or a checkpoint file.")] = "pretrained"
    task: Annotated[
        WantedTask,
        _shown(
            "As for an export. Embeddings are compared by cosine and nearest neighbours, patches "
            "(dense) by cosine, and kept where 99 % of an image's reach 0.9."
        ),
    ] = "auto"
    labels: Annotated[Path | None, _shown("Labels file, as for evaluate.")] = None
    class_order: Annotated[
        ClassOrder | None, _shown("What class folders mean, as for evaluate.")
    ] = None
    batches: Annotated[str, _shown("Batch sizes to time, a list.")] = "8"
    rounds: Annotated[Whole, _shown("Counted rounds at each batch (0: nothing is timed).")] = 15
    threads: Annotated[Whole, _shown("CPU threads (0: all).")] = 0
    workers: Annotated[Whole | None, _shown("Decoding processes.")] = None

    def contest(self, model: str, images: str) -> Contest:
        """What to compare; ConfigError for what cannot be meant."""
        from atm_export.compare import Contest

        cores = os.cpu_count() or 1
        return Contest(
            model,
            self.weights,
            DataPlace(images, self.labels, self.class_order),
            _entries(self.methods),
            self.gflops,
            numbers_of(self.batches, "--batches", 1, MAX_BATCH),
            whole(self.rounds, "--rounds", 0, MAX_ROUNDS),
            checked_threads(self.threads, "--threads"),
            cores if self.workers is None else whole(self.workers, "--workers", 0, MAX_WORKERS),
            self.task,
        )


USUAL = CompareOptions()


def compare(
    model: str,
    /,
    *,
    images: Annotated[str, _shown("Images, as for tune; a few hundred are enough.")],
    options: CompareOptions = USUAL,
    out: Annotated[
        Path | None, _shown("Folder of the runs and of the result (build/compare-MODEL).")
    ] = None,
) -> int:
    """Export all reduction methods at one cost, and compare what they lose and how fast they are.

    Each is exported into --out and proven (what is there already is used again), judged on the
    images by the eager reference (KL to the unmerged model, agreement with it, accuracy where
    labels are known; of embeddings 1 - cosine, and whether the nearest neighbour among the images
    stays; with 95 % intervals) and timed in ONNX Runtime beside the unmerged export.
    Methods that do not apply to the model are named with the reason. Writes compare.json,
    compare.svg and report.html.

        atm-export compare deit_t --images imagenet/val
        atm-export compare deit_s --images photos --methods atm,evit,mctf --gflops 3
    """
    from atm_export.compare import compare as run_all

    out = _checked(out or Path("build") / f"compare-{file_name(model)}")
    task = options.contest(model, images)
    if task.threads:
        torch.set_num_threads(task.threads)
    console = Console(stderr=True)
    with console.status("starting") as status:

        def say(text: str) -> None:
            status.update(text)
            if not console.is_terminal and " of " not in text and text.count(":") < 2:
                print(text, flush=True)

        facts = run_all(task, out, say)
    _write(out, facts)
    _print(Console(width=max(140, Console().width)), facts)
    print(f"written   {out}/: {', '.join(FILES)}")
    return 0


def _entries(given: tuple[str, ...]) -> tuple[str, ...]:
    """Entries by commas; a comma within settings stays: what follows it is no name."""
    found: list[str] = []
    for text in given:
        for part in text.split(","):
            continues = found and "=" in found[-1] and part.strip()[:1].isdigit()
            if continues:
                found[-1] += f",{part}"
            elif part.strip():
                found.append(part.strip())
            else:
                raise ConfigError(f"--methods {text}: a name is empty")
    if not found:
        raise ConfigError("--methods names nothing to compare")
    return tuple(found)


def _checked(out: Path) -> Path:
    place.refuse_loss(out, FILES)
    return place.plain(out)


def _write(out: Path, facts: dict[str, Any]) -> None:
    from atm_export.report.compared import compared_page, divergence_chart
    from atm_export.report.front import standing_alone

    text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    svg = standing_alone(divergence_chart(facts))
    written = (text, svg, compared_page(facts))
    loose_files.put_files(out, {n: t.encode() for n, t in zip(FILES, written, strict=True)})


def _print(console: Console, facts: dict[str, Any]) -> None:
    from atm_export.report.compared import judged_by, speeds

    title = f"{facts['model']}, {facts['images']} images, about {facts['gflops']:g} GFLOPs"
    table = Table(box=box.SIMPLE, title_justify="left", title=title)
    judge = judged_by(facts)
    names = ("method", "GFLOPs", f"{judge.apart.title} (95 %)", judge.same.title, "top-1 %")
    for name in names if facts["unmerged"]["top1"] else names[:-1]:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    table.add_column("times as fast", justify="right", max_width=8)
    table.add_column("FLOPs ratio", justify="right", max_width=6)
    table.add_column("settings", overflow="fold")
    timed = speeds(facts)
    for row in facts["rows"]:
        apart, speed = row[judge.apart.key], timed.get(row["name"], [])
        top1 = [] if row["top1"] is None else [f"{row['top1']['percent']:.1f}"]
        table.add_row(
            row["name"],
            f"{row['gflops']:.3f}",
            f"{apart['mean']:.4f} ({apart['low']:.4f} to {apart['high']:.4f})",
            f"{row[judge.same.key]['percent']:.1f}",
            *top1,
            " ".join(f"{each['speedup']['median']:.2f}" for each in speed),
            " ".join(f"{each['flops_ratio']:.2f}" for each in speed),
            row["origin"],
        )
    console.print(table)
    for one in facts["left_out"]:
        console.print(f"left out: {one['name']}: {one['reason']}", highlight=False, markup=False)
