"""`atm-export evaluate`: accuracy, agreement, multiply-adds and tokens on a data set."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from atm_export.measure.accuracy.batches import Options
from atm_export.measure.accuracy.evaluation import Place, evaluate_run, result_names
from atm_export.measure.data.classes import ClassOrder
from atm_export.numbers import Whole
from atm_export.report.evaluation import print_evaluation
from atm_export.report.results import add_results, open_with_report, refuse_loss


class _Rate(ProgressColumn):
    """Images per second of this session."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What runs, and how its images are read."""

    runner: Annotated[
        str,
        Parameter(
            help="eager (PyTorch), onnxruntime (CUDA where there is one), onnxruntime-int8, "
            "openvino, tensorrt, ..."
        ),
    ] = "onnxruntime"
    labels: Annotated[
        Path | None,
        Parameter(
            help="Labels file: `file class` a line (spaces and commas in names are kept, quotes as "
            "in CSV), or one class a line in file order."
        ),
    ] = None
    class_order: Annotated[
        ClassOrder | None,
        Parameter(
            help="What class folders mean whose names are neither synsets nor classes of the "
            "model. name: classes in the order of names (1, 10, 2), as torchvision's ImageFolder "
            "trains; natural: by the numbers in them (1, 2, 10), as timm trains; index: a folder's "
            "name is the class. Needed only where these differ."
        ),
    ] = None
    real: Annotated[
        Path | None, Parameter(help="ReaL labels (real.json): several classes may be right.")
    ] = None
    split: Annotated[str, Parameter(help="Split of a Hugging Face data set.")] = "validation"
    batch: Annotated[
        Whole, Parameter(help="Images a batch; with --merge adaptive they share r.")
    ] = 32
    limit: Annotated[Whole | None, Parameter(help="Count the first N images only.")] = None
    unmerged: Annotated[
        bool,
        Parameter(
            help="Run the unmerged model too: its accuracy, and agreement with it.",
            negative="--no-unmerged",
        ),
    ] = True
    workers: Annotated[
        Whole | None, Parameter(help="Decoding processes (default: one a core; 0: none).")
    ] = None
    max_unreadable: Annotated[
        Whole, Parameter(help="Images that may fail to decode; each is named and left out.")
    ] = 10

    def options(self) -> Options:
        """How to evaluate, with the number of cores where none is said."""
        return Options(
            runner=self.runner,
            batch=self.batch,
            workers=(os.cpu_count() or 1) if self.workers is None else self.workers,
            max_unreadable=self.max_unreadable,
            limit=self.limit,
            unmerged=self.unmerged,
        )

    def place(self, imagenet: str) -> Place:
        """Where the images and their labels are."""
        return Place(imagenet, self.labels, self.real, self.split, self.class_order)


USUAL = EvaluateOptions()


def evaluate(
    run: Path,
    /,
    *,
    imagenet: Annotated[
        str,
        Parameter(
            help="Images: class folders (ImageNet synsets get their canonical classes, also a "
            "subset of them; folders 0 to 999 theirs in a model of 1000 classes), a flat folder "
            "with --labels, a .tar or a folder of them (class folders or WebDataset; not "
            "compressed), a folder of parquet files, or hfds/NAME (Hugging Face)."
        ),
    ],
    options: EvaluateOptions = USUAL,
    weights: Annotated[
        str | None, Parameter(help="The export's weights, where they are no longer in their place.")
    ] = None,
    threads: Annotated[Whole, Parameter(help="CPU threads of the model (0: all).")] = 0,
) -> int:
    """Measure a finished run on labelled images.

    Prints top-1 and top-5 with 95 % (Wilson) intervals, agreement with the unmerged model, GFLOPs
    and tokens per block; writes evaluation-RUNNER.json and predictions-RUNNER.csv into the run
    folder and draws report.html anew. Interrupted, the same command goes on where it was.

        atm-export evaluate build/deit_s-a2-3.23 --imagenet imagenet/val
        atm-export evaluate build/deit_s-a2-3.23 --imagenet photos --labels photos.txt
    """
    return evaluate_folder(run, options.place(imagenet), options.options(), weights, threads)


class _Shown:
    """Progress of an evaluation: a bar, or where nobody watches a line at every tenth."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self.console, self.bar = console, bar
        self.task = bar.add_task("starting", total=None)
        self.last = -1

    def say(self, text: str) -> None:
        self.bar.update(self.task, description=text)

    def progress(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total, description="evaluating")
        tenth = 10 * done // max(total, 1)
        if not self.console.is_terminal and tenth != self.last:
            print(f"evaluating: {done} of {total} images", flush=True)
        self.last = tenth


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
    )


def evaluate_folder(
    folder: Path,
    place: Place,
    options: Options,
    weights: str | None = None,
    threads: int = 0,
) -> int:
    """Evaluate, print, and add the results to the run folder."""
    run = open_with_report(folder, f"evaluation-{options.runner}.json")
    refuse_loss(folder, result_names(options.runner))
    console = Console(stderr=True)
    with _bar(console) as bar:
        shown = _Shown(console, bar)
        evaluation = evaluate_run(
            run,
            place,
            options,
            weights=weights,
            threads=threads,
            say=shown.say,
            progress=shown.progress,
        )
    add_results(folder, evaluation.files())
    evaluation.journal.unlink(missing_ok=True)
    print_evaluation(Console(soft_wrap=True), evaluation.facts)
    return 0
