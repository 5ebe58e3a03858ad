"""`atm-export predict`: answers for any number of pictures, as a Parquet file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from atm_export.numbers import Whole
from atm_export.predict.run import Options, Predicted, predict_run
from atm_export.report.progress import images_shown


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What runs, what is kept of its answers, and how pictures are read."""

    top_k: Annotated[
        Whole | None, Parameter(help="Classes to keep of each picture (classifiers; default: 5).")
    ] = None
    batch: Annotated[
        Whole, Parameter(help="Pictures a batch; with --merge adaptive they share r.")
    ] = 32
    shard_size: Annotated[
        Whole,
        Parameter(
            help="Pictures a shard: what is on disk at once, and a row group of the file. No batch "
            "crosses a shard; give a multiple of --batch."
        ),
    ] = 512
    workers: Annotated[
        Whole | None,
        Parameter(help="Decoding processes (default: one a core; 0: a thread of this process)."),
    ] = None
    backend: Annotated[
        str | None, Parameter(help="What runs the graph: onnxruntime (default), openvino, ...")
    ] = None
    engine: Annotated[
        str | None,
        Parameter(
            help="Run this TensorRT engine of the folder instead, or a graph in low precision; "
            "auto: the engine that fits."
        ),
    ] = None
    providers: Annotated[
        str | None,
        Parameter(help="ONNX Runtime providers in order, such as cuda,cpu (default: just that)."),
    ] = None
    threads: Annotated[
        Whole,
        Parameter(help="CPU threads of the model (0: all; with --ray, of each task, 0: one)."),
    ] = 0
    ray: Annotated[
        str | None,
        Parameter(
            help="Answer on the Ray cluster at this address (auto: the local one), whose nodes may "
            "die: a task a shard. --workers then means nothing, a thread of each task decodes."
        ),
    ] = None

    def options(self) -> Options:
        """How to predict, with the number of cores where none is said."""
        return Options(
            top_k=self.top_k,
            batch=self.batch,
            shard_size=self.shard_size,
            workers=(os.cpu_count() or 1) if self.workers is None else self.workers,
            backend=self.backend,
            engine=self.engine,
            providers=tuple(self.providers.split(",")) if self.providers else None,
            threads=self.threads,
            ray=self.ray,
        )


USUAL = PredictOptions()


def predict(
    run: Path,
    /,
    *,
    images: Annotated[
        str,
        Parameter(
            help="Pictures: a folder with all below it (sorted), a .tar or a folder of them (in "
            "the archive's order; not compressed), or a text file that lists files, one a line, "
            "from the list's folder."
        ),
    ],
    out: Annotated[Path, Parameter(help="The .parquet file to write.")],
    options: PredictOptions = USUAL,
    force: Annotated[
        bool,
        Parameter(
            help="Replace a file that predict wrote, and shards of another prediction; never files "
            "of yours.",
            negative=(),
        ),
    ] = False,
) -> int:
    """Write a run's answers to any number of pictures into one Parquet file.

    Columns: path, and embedding (a run of --task embed), or top_classes, top_probabilities and
    top_labels where the run names its classes. Interrupted, the same command goes on after the last
    whole shard, and the file is the same byte by byte. Pictures that cannot be read are listed in
    OUT.unreadable.txt; the exit code is 0 unless none can be read (9). Needs pyarrow:
    pip install 'atm-export[data]'.

        atm-export predict build/deit_s-a2-3.23-embed --images photos --out features.parquet
        atm-export predict build/deit_s-a2-3.23 --images shard.tar --top-k 3 --out top.parquet
        atm-export predict build/deit_s-a2-3.23 --images shards --out top.parquet --ray auto
    """
    with images_shown("predicting") as shown:
        found = predict_run(
            run,
            images,
            out,
            options.options(),
            force=force,
            say=shown.say,
            progress=shown.progress,
        )
    print(_summary(found))
    return 0


def _summary(found: Predicted) -> str:
    if found.reused:
        return f"reused {found.out}: same run, pictures and options (--force redoes it)"
    bad = f", {len(found.unreadable)} unreadable in {found.listed}" if found.unreadable else ""
    rate = ""
    if found.pictures:
        share = 100 * found.busy / found.seconds
        rate = f", {found.pictures / found.seconds:.1f}/s ({share:.0f} % of the time in the model)"
    return f"written {found.out}: {found.rows} pictures{bad}{rate}"
