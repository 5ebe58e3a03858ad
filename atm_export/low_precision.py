"""Graphs in low precision for a finished run: calibrated, judged, and added to its folder whole.

Where one is too far from the eager reference, nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from atm_export.backends import backends
from atm_export.backends.base import FP32, GRAPH, Backend
from atm_export.errors import ConfigError
from atm_export.graph import lint
from atm_export.graph.optimize import with_facts, with_outputs
from atm_export.graph.saving import in_memory, save_graph
from atm_export.prove.low import IMAGES, INT8, LowGraph, judged
from atm_export.report.facts import graph_facts, shipped_outputs
from atm_export.runs import writing
from atm_export.runs.graphs import Buffer
from atm_export.runs.manifest import Manifest
from atm_export.runs.reading import read_manifest
from atm_export.runs.seal import sha256
from atm_export.subject import Pixels, Progress, Subject


@dataclass(frozen=True)
class Low:
    """A precision below FP32 in which a backend runs graphs."""

    backend: str
    precision: str

    @property
    def file(self) -> str:
        """Its file in a run folder."""
        return backends[self.backend].own_graph(self.precision)

    @property
    def files(self) -> list[str]:
        """The same, with what lies beside it."""
        file = Path(self.file)
        return [self.file, *([file.with_suffix(".bin").name] if file.suffix == ".xml" else [])]

    def is_there(self, manifest: Manifest) -> bool:
        """Whether a run has it, made of the graph that it has (its files were checked before)."""
        facts = manifest.low_precision.get(self.file)
        return facts is not None and facts.document.get("key") == self.key(manifest)

    def source(self, manifest: Manifest) -> str:
        """The FP32 graph that it is made of."""
        return manifest.graphs.get(self.backend, GRAPH)

    def key(self, manifest: Manifest) -> str:
        """What tells it from others of its name."""
        parts: Mapping[str, Any] = {
            "run": manifest.run_key,
            "precision": self.precision,
            "source": manifest.files[self.source(manifest)].sha256,
            self.backend: writing.version_of(self.backend),
        }
        return writing.run_key(parts)


@dataclass(frozen=True)
class Material:
    """What a graph in low precision is made of: a finished export's subject, its FP32 graph with
    trace outputs, images [k, H, W, C] to calibrate on, and those to compare over."""

    subject: Subject
    traced: ir.Model
    calibration: Pixels
    images: Pixels

    def traced_for(self, backend: Backend) -> ir.Model:
        """The graph in the form that the backend runs best."""
        subject, form = self.subject, backend.form
        if form == "plain" or not subject.has_form(form):
            return self.traced
        return subject.graph(subject.plan, form)


def low_precisions(names: Sequence[str], on: Iterable[str], *, engines: bool) -> tuple[Low, ...]:
    """Those of `names` below FP32 on each of the backends `on` that runs graphs; ConfigError for
    one that none of them has, unless `engines` take it."""
    found = []
    running = [name for name in on if not backends[name].engines]
    for name in dict.fromkeys(names):
        able = [each for each in running if name in backends[each].precisions]
        if not able and not engines:
            known = " and ".join(backends[running[-1]].precisions)
            raise ConfigError(
                f"--precision {name} is not possible for --backend {running[-1]}; {known} are"
            )
        found += [Low(each, name) for each in able if name != FP32]
    return tuple(found)


def add_low_precision(out: Path, material: Material, low: Low, progress: Progress) -> None:
    """Add a graph in low precision to the run in `out`.

    Raises ParityError where it is too far from the reference, OutputError where its files would
    replace others.
    """
    backend, subject = backends[low.backend], material.subject
    progress(f"making {low.precision} for {backend.title}, and comparing it with the reference")
    traced, images = material.traced_for(backend), material.images
    made, proof = judged(backend, subject, traced, low.precision, material.calibration, images)
    manifest = read_manifest(out)
    with writing.working(out, manifest.run_key) as work:
        files = _files(backend, subject, made, low.file)
        for file, data in files.items():
            work.write(file, data)
        entry = {
            "key": low.key(manifest),
            "backend": low.backend,
            "precision": low.precision,
            low.backend: writing.version_of(low.backend),
            "bytes": (work.path / low.file).stat().st_size,
            "sha256": sha256(work.path / low.file),
            "source": {
                "file": low.source(manifest),
                "sha256": manifest.files[low.source(manifest)].sha256,
            },
            **_calibrated(made, len(material.calibration)),
            "validation": proof.facts(),
        }
        entries = {each: facts.document for each, facts in manifest.low_precision.items()}
        entries[low.file] = entry
        writing.extend(work, out, list(files), {"low_precision": entries})


def _calibrated(made: LowGraph, count: int) -> dict[str, Any]:
    if made.precision != INT8:
        return {}
    keys = made.precision if made.keys else FP32
    return {"calibrated_on": {"images": min(IMAGES, count)}, "keys": keys}


def _files(
    backend: Backend, subject: Subject, made: LowGraph, name: str
) -> Mapping[str, bytes | Iterable[Buffer]]:
    """What is saved of a graph, by file; what it needs is written before it."""
    facts = {**graph_facts(subject.config, subject.model, subject.plan)}
    facts |= {"precision": made.precision, "backend": backend.name}
    shipped = with_facts(with_outputs(made.model, shipped_outputs(subject)), facts)
    lint.report([each for each in lint.lint(shipped) if each.rule != lint.CUSTOM])
    if not name.endswith(".xml"):
        return save_graph(shipped, name, subject.config.external_data)
    saved = backend.in_precision(in_memory(shipped), made.precision, made.matching)
    with backend.open_graph(saved, made.precision):  # what ships keeps its matching too
        beside = {file: bytes(data) for file, data in saved.beside.items()}
    return {**beside, name: saved.graph}
