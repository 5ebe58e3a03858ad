"""`atm-export web RUN... --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def web(
    *runs: Annotated[Path, Parameter(help="Folders that `atm-export MODEL` wrote.")],
    out: Annotated[Path, Parameter(help="Folder for the page.")],
    precision: Annotated[
        str, Parameter(help="Which graph of the runs answers: fp32, or int8 where they have it.")
    ] = "fp32",
    onnxruntime_web: Annotated[
        Path | None,
        Parameter(
            help="The npm package onnxruntime-web (default: $ATM_EXPORT_ONNXRUNTIME_WEB, else "
            "node_modules here or in a folder above)."
        ),
    ] = None,
) -> int:
    """See `commands.WEB`."""
    from atm_export.web.site import write_site

    site = write_site(runs, out, precision=precision, onnxruntime_web=onnxruntime_web)
    for note in site.notes:
        print(f"note      {note}")
    print(f"written   {site.folder}/ ({site.bytes / 1e6:.1f} MB)")
    print(f"open      python -m http.server --directory {site.folder}, then http://localhost:8000")
    return 0
