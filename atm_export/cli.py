"""The command line: arguments -> config -> pipeline; every mistake is one line and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from atm_export import __version__, commands
from atm_export.choice import RUN, USUAL, WHAT, Choice, Options, shown
from atm_export.commands.engine_options import NO_ENGINES, EngineOptions
from atm_export.errors import AtmExportError, ConfigError, OutputError
from atm_export.numbers import Whole

if TYPE_CHECKING:
    from atm_export.low_precision import Low

HELP = """Export a token-merging vision transformer to ONNX, and prove it.

Takes a pretrained vision transformer, applies Adaptive Token Merging (arXiv 2505.15160: cosine
thresholds decide at run time how many tokens merge; no training), writes an ONNX graph with a
dynamic token axis, proves in ONNX Runtime that it takes the same decisions and gives the same
numbers as PyTorch, and reports what was saved.

    atm-export demo                          a small ViT that ships inside; works offline
    atm-export deit_s                        timm's pretrained weights, the paper's lossless point
    atm-export deit_t --weights FILE         your checkpoint (.safetensors, .pth)
    atm-export timm:vit_tiny_patch16_224     any plain timm VisionTransformer
    atm-export hf:facebook/dinov2-small      a checkpoint of transformers (a folder: hf:./FOLDER)
    atm-export deit_s --gflops 3.2           the paper's nearest point at or below 3.2 GFLOPs
    atm-export deit_t --merge-blocks auto    the same cost by fewer merges, which take less time
    atm-export deit_s --trt                  TensorRT engines too (see Engines below)
    atm-export deit_s --backend openvino     proven on OpenVINO too (docs/openvino.md)
    atm-export deit_s --backend onnxruntime --precision int8    for CPUs too (docs/int8.md)
    atm-export deit_s --method tome -r 8     ToMe, the static peer
    atm-export list                          models, presets and the paper's figures
    atm-export evaluate RUN --imagenet DIR   accuracy, agreement, GFLOPs, tokens of a finished run
    atm-export predict RUN --images DIR --out features.parquet   embeddings or classes of all of it
    atm-export bench RUN                     speed here, against no merging, and what to deploy
    atm-export tune MODEL --images DIR       the cheapest point that loses nothing on your images
    atm-export compare MODEL --images DIR    every reduction method on your images, side by side
    atm-export reproduce --images DIR        the paper's tables and figures on your weights
    atm-export visualize RUN IMAGE...        pictures of what merged
    atm-export web RUN --out site            a page that runs it in the browser (docs/browser.md)
    atm-export verify build/deit_s           every byte and every golden vector, again
    atm-export deit_s --triton-repo models   a model repository for Triton Inference Server

Exit codes: 0 done, 2 settings, 3 weights, 4 model not supported, 5 parity failed, 6 graph lint,
7 output folder, 8 missing package, 9 images, 10 run folder not to be trusted, 11 engine build,
12 an answer with NaN, 130 interrupted.
"""

app = App(
    name="atm-export",
    help=HELP,
    help_format="plaintext",
    version=__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)


@app.default
def export_command(
    model: Annotated[
        str,
        shown(
            WHAT,
            "A name from `atm-export list`, timm:NAME, hf-hub:OWNER/NAME, tv:NAME, hf:OWNER/NAME "
            "or hf:./FOLDER.",
        ),
    ],
    /,
    *,
    choice: Options = USUAL,
    imagenet: Annotated[
        str | None,
        shown(RUN, "Evaluate on this data set afterwards (see `atm-export evaluate --help`)."),
    ] = None,
    out: Annotated[Path | None, shown(RUN, "Output folder (default: build/MODEL-PRESET).")] = None,
    force: Annotated[
        bool, shown(RUN, "Redo a finished run; replace another one, never files of yours.")
    ] = False,
    threads: Annotated[Whole, shown(RUN, "CPU threads to measure with (0: all).")] = 0,
    benchmark: Annotated[
        bool,
        Parameter(group=RUN, help="Measure latency.", negative="--no-benchmark"),
    ] = True,
    triton_repo: Annotated[
        Path | None,
        shown(RUN, "Also write the run into this model repository of Triton Inference Server."),
    ] = None,
    engines: EngineOptions = NO_ENGINES,
) -> int:
    """Export one model."""
    from atm_export.resolving import budget_of, default_out, resolve

    chosen = Choice.of(model, choice)
    config, budget = resolve(chosen), budget_of(chosen)
    settings, low = engines.settings(), engines.low_precisions()
    if budget is not None:
        from atm_export.measure.budget import meeting

        config = meeting(config, budget, print)
    out = out or default_out(config)
    if triton_repo is not None:
        from atm_export.commands.triton import refuse_loss

        refuse_loss(out, triton_repo)
    code = _run(config, out, force, threads, benchmark, engines.chosen(), settings, low)
    return _afterwards(out, code, imagenet, threads, triton_repo)


def _afterwards(
    out: Path, code: int, imagenet: str | None, threads: int, triton_repo: Path | None
) -> int:
    """What is made of a finished run where it was asked for; returns the exit code."""
    if imagenet is not None:
        from atm_export.commands.evaluate import evaluate

        code = evaluate(out, imagenet=imagenet, threads=threads)
    if triton_repo is not None:
        from atm_export.commands.triton import write_all

        write_all(out, triton_repo)
    return code


def _run(
    config: Any,
    out: Path,
    force: bool,
    threads: int,
    benchmark: bool,
    on: Sequence[str],
    engines: Any,
    low: Sequence[Low],
) -> int:
    from rich.console import Console

    from atm_export.report.console import print_report

    console = Console(stderr=True)
    with console.status("starting") as status:

        def progress(text: str) -> None:
            status.update(text)
            if not console.is_terminal and ":" not in text:
                print(text, flush=True)

        from atm_export.pipeline import export

        outcome = export(
            config,
            out,
            force=force,
            threads=threads,
            benchmark=benchmark,
            on=on,
            engines=engines,
            low=low,
            progress=progress,
        )
    if outcome.reused:
        print(f"reused {out}/: same settings, weights, images and versions (--force redoes it)")
    print_report(Console(soft_wrap=True), out, outcome.report)
    return 0


@app.command(name="list")
def list_command(model: str | None = None, /) -> int:
    """List the models, or one model's presets with what the paper says of them."""
    from rich.console import Console

    from atm_export.report.listing import print_models, print_presets

    console = Console(width=max(120, Console().width))
    if model is None:
        print_models(console)
    else:
        print_presets(console, model)
    return 0


app.command("atm_export.commands.evaluate:evaluate", name="evaluate")
app.command("atm_export.commands.predict:predict", name="predict")
app.command("atm_export.commands.bench:bench", name="bench")
app.command("atm_export.commands.tune:tune", name="tune")
app.command("atm_export.commands.compare:compare", name="compare")
app.command("atm_export.commands.reproduce:reproduce", name="reproduce")
app.command("atm_export.commands.visualize:visualize", name="visualize")
app.command("atm_export.commands.verify:verify", name="verify", help=commands.VERIFY)
app.command("atm_export.commands.triton:triton", name="triton", help=commands.TRITON)
app.command("atm_export.commands.web:web", name="web", help=commands.WEB)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    # PyTorch's threads spin while they wait, and cost a loaded machine several times the work; read
    # when PyTorch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # paths may be no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_words(sys.argv[1:] if arguments is None else arguments)
        result = app(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        return _fail(ConfigError(" ".join(str(error).split())))
    except AtmExportError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print(
            "atm-export: interrupted; finished stages are kept, the same command resumes there",
            file=sys.stderr,
        )
        return 130
    except MemoryError:
        return _fail(AtmExportError("out of memory; try a smaller model or --image-size"))


def _check_words(arguments: Sequence[str]) -> None:
    """An empty argument is a shell variable that is not set, and never `.`, as a path would be."""
    before = ""
    for text in arguments:
        option, assigned, value = text.partition("=")
        given = text.startswith("--") and assigned
        if not (value if given else text).strip():
            name = option if given else before if before.startswith("-") else ""
            kind = OutputError if name in ("--out", "--triton-repo") else ConfigError
            raise kind(f"{name or 'an argument'} is empty; is a shell variable not set?")
        before = text


def _fail(error: AtmExportError) -> int:
    line = " ".join(str(error).split())  # names in it may hold codes that a terminal obeys
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    print(f"atm-export: {shown}", file=sys.stderr)
    return error.exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
