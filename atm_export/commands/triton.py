"""`atm-export triton RUN --triton-repo DIR`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from atm_export.triton import Repository


def triton(
    run: Annotated[Path, Parameter(help="The folder that `atm-export MODEL` wrote.")],
    /,
    *,
    triton_repo: Annotated[Path, Parameter(help="The model repository to write into.")],
    backend: Annotated[
        str | None,
        Parameter(help="What Triton runs it with: onnxruntime (default), openvino, tensorrt."),
    ] = None,
    engine: Annotated[
        str | None,
        Parameter(
            help="Serve this TensorRT engine of the run instead (auto: the first, FP32 before "
            "lower precisions)."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        Parameter(
            help="Serve the run's graph of ONNX Runtime in this precision, on the CPU: fp32 "
            "(default), int8."
        ),
    ] = None,
    name: Annotated[str | None, Parameter(help="The model's name (default: the run's).")] = None,
) -> int:
    """See `commands.TRITON`."""
    from atm_export.triton import write_repository

    written = write_repository(
        run, triton_repo, backend=backend, engine=engine, precision=precision, name=name
    )
    _show(written)
    return 0


def write_all(run: Path, repository: Path) -> None:
    """The run for ONNX Runtime; under names of their own, its graphs in low precision, the same for
    other backends that it was proven on and that Triton has, and each engine that Triton can load.
    """
    from atm_export.backends import ONNXRUNTIME
    from atm_export.runs.reading import open_run
    from atm_export.triton import default_name, write_repository
    from atm_export.triton_graphs import GRAPHS, SERVED_FLAVOR

    opened = open_run(run)
    _show(write_repository(opened, repository))
    for backend in list(GRAPHS)[1:]:
        if backend in opened.manifest.proven_on:
            name = f"{default_name(run)}-{backend}"
            _show(write_repository(opened, repository, backend=backend, name=name))
    for precision in opened.manifest.low_precision_of(ONNXRUNTIME):
        name = f"{default_name(run)}-{precision}"
        _show(write_repository(opened, repository, precision=precision, name=name))
    for file, facts in opened.manifest.engines.items():
        if facts.flavor == SERVED_FLAVOR:
            name = f"{default_name(run)}-trt-{facts.precision}"
            _show(write_repository(opened, repository, engine=file, name=name))
        else:
            print(f"atm-export: Triton does not load {file} (TensorRT-RTX)", file=sys.stderr)


def refuse_loss(run: Path, repository: Path) -> None:
    """Before a long export: ConfigError or OutputError if `write_all` could not write its model."""
    from atm_export.triton import default_name, model_folder

    model_folder(repository, default_name(run))


def _show(written: Repository) -> None:
    for warning in written.warnings:
        print(f"atm-export: {warning}", file=sys.stderr)
    print(f"written {written.folder}/")
