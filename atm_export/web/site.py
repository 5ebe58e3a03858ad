"""The page's folder.

    DIR/index.html  page.css  *.mjs  site.json  ort/  runs/1/{manifest.json, model.onnx, golden...}

All that the page loads lies in it: `runtime/web` as it is, onnxruntime-web's three files, and of
each run what is asked there. It is written beside first and moved in whole; it carries a list of
its files (`place`), and only a folder that holds just those is ever replaced.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from atm_export import place
from atm_export.backends import ONNXRUNTIME, backends
from atm_export.backends.base import graph_in
from atm_export.errors import ConfigError, OutputError, RunFolderError
from atm_export.runs.engine_facts import FP32
from atm_export.runs.graphs import Buffer, read_graph
from atm_export.runs.reading import MANIFEST, Run, open_run, read_checked
from atm_export.runs.writing import working
from atm_export.strict_json import loads
from atm_export.web.package import (
    FILES,
    PACKAGE,
    package_folder,
    pinned_version,
    version_of,
    web_folder,
)

OWN = (
    "index.html",
    "icon.svg",
    "page.css",
    "atm_runtime.mjs",
    "draw.mjs",
    "errors.mjs",
    "golden.mjs",
    "jpeg.mjs",
    "manifest.mjs",
    "page.mjs",
    "preprocess.mjs",
    "resample.mjs",
    "worker.mjs",
)
MOST_BYTES = 1_900_000_000  # browsers end an array at 2 GB, and WebAssembly's memory at 4
FORMAT = 1


@dataclass(frozen=True)
class Site:
    """What was written: the folder, its size, and what is worth saying about it."""

    folder: Path
    bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """One run of the page, and the graph of it that answers."""

    run: Run
    precision: str
    graph: str

    @property
    def traced(self) -> bool:
        """Whether it says which patches merged."""
        return "patch_to_token" in self.run.manifest.outputs


def write_site(
    runs: Sequence[Run | Path],
    out: Path,
    *,
    precision: str = FP32,
    onnxruntime_web: Path | None = None,
) -> Site:
    """Write `runs` of one model into `out` as one page, a stop of its slider each; an older page
    there is replaced, if it is as it was written.

    precision: fp32, or int8 where every run has that graph. onnxruntime_web: the npm package's
    folder; None looks where `package_folder` says. Raises ConfigError, MissingDependencyError,
    OutputError, RunFolderError.
    """
    folder = _folder(out)
    package = package_folder(onnxruntime_web)
    shown = [shown_run(each, precision) for each in runs]
    _require_one_model(shown)
    with working(folder, "") as work, place.output_errors(folder):
        part = work.path / "site"
        shutil.rmtree(part, ignore_errors=True)
        size = 0
        for name, data in _files(shown, package):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            size += (part / name).write_bytes(data)
        place.put_folder(part, folder)
    return Site(folder, size, tuple(_notes(shown, package)))


def _folder(out: Path) -> Path:
    """Where the page goes, links followed; OutputError if anything there would be lost."""
    folder = place.target(out)
    place.refuse_folder_loss(folder)
    here = Path.cwd()
    if folder in (here, *here.parents):  # it is replaced whole, and the shell would stand nowhere
        raise OutputError(f"{out} is the folder that this command runs in; {place.REMEDY}")
    return folder


def shown_run(run: Run | Path, precision: str = FP32) -> Shown:
    """A run as the page shows it; ConfigError for one that it cannot show."""
    run = run if isinstance(run, Run) else open_run(run)
    told, how = run.manifest, run.input.preprocessing
    if told.proven_on and ONNXRUNTIME not in told.proven_on:
        proven = ", ".join(told.proven_on)
        raise ConfigError(
            f"{run.folder} was proven on {proven} alone, and browsers run ONNX Runtime"
        )
    if not how.pictured:
        raise ConfigError(
            f"{run.folder} takes {how.channels} channels, and a picture has 1 (grey) or 3 (RGB)"
        )
    told.answers.require_ranks("a page with an answer", run.folder)
    return Shown(run, precision, graph_in(backends[ONNXRUNTIME], run, precision))


def _require_one_model(shown: Sequence[Shown]) -> None:
    """ConfigError unless all runs are of one model, and see a picture alike."""
    if not shown:
        raise ConfigError("name the runs to show: atm-export web RUN... --out DIR")
    first, one = shown[0].run.folder, shown[0].run.manifest
    for each in shown[1:]:
        other = each.run.manifest
        differs = {
            "model": one.model != other.model,
            "preprocessing": one.input.preprocessing != other.input.preprocessing,
            "labels": one.labels != other.labels,
        }
        for what in (what for what, differ in differs.items() if differ):
            raise ConfigError(
                f"one page shows one model: {each.run.folder} and {first} have not the same {what}"
            )


def _files(shown: Sequence[Shown], package: Path) -> Iterator[tuple[str, Buffer]]:
    """Every file of the page with its bytes, by its path from there."""
    for name in OWN:
        yield name, (web_folder() / name).read_bytes()
    for name in FILES:
        yield f"ort/{name}", (package / "dist" / name).read_bytes()
    facts = []
    for number, each in enumerate(shown, 1):
        files = _run_files(each)
        yield from ((f"runs/{number}/{name}", data) for name, data in files.items())
        facts.append(_facts(each, f"runs/{number}/", files))
    site = {
        "format": FORMAT,
        "model": shown[0].run.manifest.model,
        "atm_export": metadata.version("atm-export"),
        "onnxruntime_web": version_of(package),
        "runs": facts,
    }
    yield "site.json", (json.dumps(site, indent=1, ensure_ascii=False) + "\n").encode()


def _run_files(shown: Shown) -> Mapping[str, Buffer]:
    """What the page reads of a run; ConfigError where that is more than a browser holds."""
    run = shown.run
    listed, named = run.manifest.files, (shown.graph, f"{shown.graph}.data")
    size = sum(listed[name].bytes for name in named if name in listed)
    if size > MOST_BYTES:
        raise ConfigError(
            f"{run.folder}: {shown.graph} has {size / 1e9:.2f} GB with its weights, and a browser "
            f"holds {MOST_BYTES / 1e9:.1f} at most; take a smaller model, or --precision int8"
        )
    saved, golden = read_graph(run, shown.graph), run.manifest.golden
    proofs = {} if golden is None else {golden.file: read_checked(run, golden.file)}
    manifest = (run.folder / MANIFEST).read_bytes()
    return {MANIFEST: manifest, shown.graph: saved.graph, **saved.beside, **proofs}


def _facts(shown: Shown, folder: str, files: Mapping[str, Buffer]) -> dict[str, Any]:
    gflops = _gflops(shown.run)
    return {
        "folder": folder,
        "precision": shown.precision,
        "title": shown.run.manifest.method.summary,
        "bytes": sum(len(memoryview(data)) for data in files.values()),
        "gflops": gflops.get("mean"),
        "unmerged_gflops": gflops.get("unmerged"),
    }


def _gflops(run: Run) -> Mapping[str, Any]:
    """What the run's report says that an image costs; nothing where it says none."""
    if "report.json" not in run.manifest.files:
        return {}
    try:
        found = loads(read_checked(run, "report.json"), dict).get("gflops")
    except ValueError as error:
        raise RunFolderError(f"{run.folder}: report.json is damaged ({error})") from error
    if not isinstance(found, dict):
        return {}
    return found if all(isinstance(found.get(k), float) for k in ("mean", "unmerged")) else {}


def _notes(shown: Sequence[Shown], package: Path) -> Iterator[str]:
    found = version_of(package)
    if found != pinned_version():
        yield f"{PACKAGE} {found} is taken; this release was tested with {pinned_version()}"
    for each in shown:
        if not each.traced:
            yield (
                f"{each.run.folder} has no trace outputs: the page shows its answers, without "
                "merged regions; export it with --trace for these"
            )
