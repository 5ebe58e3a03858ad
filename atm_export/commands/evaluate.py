"""`atm-export evaluate`: accuracy, agreement, multiply-adds and tokens on a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from atm_export.errors import AtmExportError
from atm_export.measure.accuracy.batches import Options
from atm_export.measure.accuracy.evaluation import evaluate_run, result_names
from atm_export.measure.accuracy.place import Place
from atm_export.measure.data.classes import ClassOrder
from atm_export.numbers import Whole
from atm_export.report.evaluation import print_evaluation
from atm_export.report.progress import images_shown
from atm_export.report.results import add_results, open_with_report, refuse_loss

BOUNDS = ("min_agreement", "min_cosine", "min_recall")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What runs, and how its images are read."""

    runner: Annotated[
        str,
        Parameter(
            help="eager (PyTorch), onnxruntime (CUDA where there is one), onnxruntime-int8, "
            "openvino, openvino-bf16, openvino-int8, tensorrt, ..."
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
    class_vectors: Annotated[
        Path | None,
        Parameter(
            help="For embeddings: an .npz that makes classes of them. `vectors` [classes, dim], "
            "such as CLIP's text embeddings (the largest cosine wins), or a linear probe's "
            "`weight` [classes, dim] and `bias`; `labels` names the classes, as the folders do."
        ),
    ] = None
    min_agreement: Annotated[
        float | None,
        Parameter(
            help="For classes: exit code 1 where the agreement with the unmerged model is lower, "
            "in percent (its 95 % interval excludes it)."
        ),
    ] = None
    min_cosine: Annotated[
        float | None,
        Parameter(
            help="For embeddings: exit code 1 where their median cosine with the unmerged model's "
            "is lower (0.98)."
        ),
    ] = None
    min_recall: Annotated[
        float | None,
        Parameter(
            help="For embeddings: exit code 1 where fewer images keep their nearest neighbour "
            "(recall@1), in percent (its 95 % interval excludes it)."
        ),
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
        return Place(
            imagenet, self.labels, self.real, self.split, self.class_order, self.class_vectors
        )

    def bounds(self) -> dict[str, float]:
        """The bounds that were given."""
        return {name: getattr(self, name) for name in BOUNDS if getattr(self, name) is not None}


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
    threads: Annotated[
        Whole,
        Parameter(help="CPU threads of the model (0: all; with --ray, of each task, 0: one)."),
    ] = 0,
    ray: Annotated[
        str | None,
        Parameter(
            help="Count on the Ray cluster at this address (auto: the local one), whose nodes may "
            "die: a task a batch, on CPUs. --workers then means nothing, each task decodes."
        ),
    ] = None,
) -> int:
    """Measure a finished run on labelled images, or embeddings on any images.

    Prints top-1 and top-5 with 95 % (Wilson) intervals, agreement with the unmerged model, GFLOPs
    and tokens per block; writes evaluation-RUNNER.json and predictions-RUNNER.csv into the run
    folder and draws report.html anew. Interrupted, the same command goes on where it was.

    A run of --task embed needs no labels: it prints the cosine with the unmerged embeddings
    (median, worst 1 %), recall@k (the unmerged nearest neighbour is among the merged k nearest of
    the folder) and overlap@k (of the k nearest neighbours), and by --class-vectors classes. Of a
    run of --task dense it prints the cosine of every patch with the unmerged one.

        atm-export evaluate build/deit_s-a2-3.23 --imagenet imagenet/val
        atm-export evaluate build/deit_s-a2-3.23 --imagenet photos --labels photos.txt
        atm-export evaluate build/deit_s-a2-3.23-embed --imagenet photos --min-cosine 0.98
        atm-export evaluate build/deit_s-a2-3.23 --imagenet imagenet/val --ray auto
    """
    place, how = options.place(imagenet), options.options()
    return evaluate_folder(run, place, how, weights, threads, options.bounds(), ray)


def evaluate_folder(
    folder: Path,
    place: Place,
    options: Options,
    weights: str | None = None,
    threads: int = 0,
    bounds: Mapping[str, float] | None = None,
    ray: str | None = None,
) -> int:
    """Evaluate, print, and add the results to the run folder; AtmExportError where they break one
    of the `bounds`."""
    run = open_with_report(folder, f"evaluation-{options.runner}.json")
    refuse_loss(folder, result_names(options.runner))
    with images_shown("evaluating") as shown:
        evaluation = evaluate_run(
            run,
            place,
            options,
            bounds=bounds,
            weights=weights,
            threads=threads,
            ray=ray,
            say=shown.say,
            progress=shown.progress,
        )
    add_results(folder, evaluation.files())
    evaluation.journal.unlink(missing_ok=True)
    print_evaluation(Console(soft_wrap=True), evaluation.facts)
    if evaluation.broken:
        raise AtmExportError(f"{folder}: {'; '.join(evaluation.broken)}")
    return 0
