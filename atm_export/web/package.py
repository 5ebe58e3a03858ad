"""The npm package onnxruntime-web: which version, which of its files, and where they lie here.

Nothing is fetched; `runtime/web/package.json` names the version that this release was tested with.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import resources
from pathlib import Path

from atm_export.errors import MissingDependencyError
from atm_export.strict_json import loads, read

PACKAGE = "onnxruntime-web"
VARIABLE = "ATM_EXPORT_ONNXRUNTIME_WEB"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


@cache
def web_folder() -> Path:
    """Where `runtime/web` lies: inside the installed package, or beside it in a checkout."""
    shipped = Path(str(resources.files("atm_export"))) / "runtime_web"
    return shipped if shipped.is_dir() else Path(__file__).resolve().parents[2] / "runtime" / "web"


@cache
def pinned_version() -> str:
    """With which this release was tested."""
    document = loads((web_folder() / "package.json").read_bytes(), dict)
    return str(document["dependencies"][PACKAGE])


def package_folder(given: Path | None = None) -> Path:
    """The package: `given`, else $ATM_EXPORT_ONNXRUNTIME_WEB, else node_modules here or in a folder
    above, as Node looks for it. MissingDependencyError says how to get it."""
    how = f"npm install {PACKAGE}@{pinned_version()}"
    named = given or os.environ.get(VARIABLE)
    if named:
        folder = Path(named)
        missing = _missing(folder)
        if missing:
            raise MissingDependencyError(f"{folder} is no {PACKAGE}: it has no {missing}; {how}")
        return folder
    here = Path.cwd()
    for above in (here, *here.parents):
        folder = above / "node_modules" / PACKAGE
        if _missing(folder) is None:
            return folder
    raise MissingDependencyError(
        f"{PACKAGE} is not in node_modules here or above; {how}, or name its folder: "
        f"--{PACKAGE} DIR or ${VARIABLE}"
    )


def _missing(folder: Path) -> str | None:
    names = ("package.json", *(f"dist/{name}" for name in FILES))
    return next((name for name in names if not _is_file(folder / name)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # what the system cannot even look up is none
        return False


def version_of(package: Path) -> str:
    """The version that a package's folder says."""
    document = read(package / "package.json", MissingDependencyError, dict, fix="install it again")
    return str(document.get("version", "unknown"))
