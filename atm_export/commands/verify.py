"""`atm-export verify RUN`: for CI, deployments and pre-commit hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from atm_export.numbers import Whole


def verify(
    *runs: Annotated[
        Path, Parameter(help="Run folders, as `atm-export MODEL` wrote them.", name="RUN")
    ],
    backend: Annotated[
        str | None, Parameter(help="What runs the graph: onnxruntime (default), openvino, ...")
    ] = None,
    providers: Annotated[
        str | None,
        Parameter(help="ONNX Runtime providers in order, such as cuda,cpu (default: just that)."),
    ] = None,
    engine: Annotated[
        str | None,
        Parameter(help="Prove a TensorRT engine of the folder instead; auto: the one that fits."),
    ] = None,
    threads: Annotated[Whole, Parameter(help="CPU threads, 0 for all cores.")] = 0,
) -> int:
    """See `commands.VERIFY`."""
    from atm_export.errors import ConfigError
    from atm_export.runtime.prove import verify as prove

    if not runs:
        raise ConfigError("name at least one run folder: atm-export verify RUN")
    for run in runs:
        order = providers.split(",") if providers else None
        checked = prove(run, backend=backend, providers=order, engine=engine, threads=threads)
        print(f"{run}")
        for line in checked.lines:
            print(f"  {line}")
        checked.require()
    print(f"verified {len(runs)} run folder{'s' if len(runs) > 1 else ''}")
    return 0
