"""Graphs in low precision for a finished run: calibrated, judged, and added to its folder whole.

Where one is too far from the eager reference, nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from atm_export.backends import ONNXRUNTIME
from atm_export.backends.base import GRAPH
from atm_export.errors import ConfigError
from atm_export.graph import lint
from atm_export.graph.optimize import with_facts, with_outputs
from atm_export.graph.saving import save_graph
from atm_export.prove.int8 import IMAGES, INT8, judged_int8
from atm_export.report.facts import graph_facts, shipped_outputs
from atm_export.runs import writing
from atm_export.runs.manifest import Manifest
from atm_export.runs.reading import read_manifest
from atm_export.runs.seal import sha256
from atm_export.subject import Pixels, Progress, Subject

FP32 = "fp32"
POSSIBLE = (FP32, INT8)


@dataclass(frozen=True)
class Material:
    """What a graph in low precision is made of: a finished export's subject, its FP32 graph with
    trace outputs, images [k, H, W, C] to calibrate on, and those to compare over."""

    subject: Subject
    traced: ir.Model
    calibration: Pixels
    images: Pixels


def file_of(precision: str) -> str:
    """Its file in a run folder."""
    return f"model.{precision}.{ONNXRUNTIME}.onnx"


def low_precisions(names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` below FP32, each once; ConfigError for one that ONNX Runtime's CPU provider
    has no fast products for."""
    for name in names:
        if name not in POSSIBLE:
            raise ConfigError(
                f"--precision {name} is not possible for --backend {ONNXRUNTIME}; "
                f"{' and '.join(POSSIBLE)} are"
            )
    return tuple(name for name in dict.fromkeys(names) if name != FP32)


def is_there(manifest: Manifest, precision: str) -> bool:
    """Whether the run has this graph, made of the model.onnx that it has (its files were checked
    before)."""
    facts = manifest.low_precision.get(file_of(precision))
    return facts is not None and facts.document.get("key") == _key(manifest, precision)


def add_low_precision(out: Path, material: Material, precision: str, progress: Progress) -> None:
    """Add the graph in `precision` to the run in `out`.

    Raises ParityError where it is too far from the reference, OutputError where its files would
    replace others.
    """
    name, subject = file_of(precision), material.subject
    external = subject.config.external_data
    progress(f"making {precision} for ONNX Runtime, and comparing it with the eager reference")
    calibration = material.calibration
    typed, proof, keys = judged_int8(subject, material.traced, calibration, material.images)
    facts = {**graph_facts(subject.config, subject.model, subject.plan), "precision": precision}
    shipped = with_facts(with_outputs(typed, shipped_outputs(subject)), facts)
    lint.report([each for each in lint.lint(shipped) if each.rule != lint.CUSTOM])
    manifest = read_manifest(out)
    with writing.working(out, manifest.run_key) as work:
        files = save_graph(shipped, name, external)
        for file, data in files.items():
            work.write(file, data)
        entry = _entry(manifest, precision, work.path / name)
        entry |= {
            "calibrated_on": {"images": min(IMAGES, len(calibration))},
            "keys": precision if keys else FP32,
            "validation": proof.facts(),
        }
        entries = {each: facts.document for each, facts in manifest.low_precision.items()}
        writing.extend(work, out, list(files), {"low_precision": {**entries, name: entry}})


def _entry(manifest: Manifest, precision: str, file: Path) -> dict[str, Any]:
    """What the manifest says of a written graph, but for how it was judged."""
    return {
        "key": _key(manifest, precision),
        "backend": ONNXRUNTIME,
        "precision": precision,
        "onnxruntime": writing.versions().get("onnxruntime", ""),
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "source": {"file": GRAPH, "sha256": manifest.files[GRAPH].sha256},
    }


def _key(manifest: Manifest, precision: str) -> str:
    parts: Mapping[str, Any] = {
        "run": manifest.run_key,
        "precision": precision,
        "source": manifest.files[GRAPH].sha256,
        "onnxruntime": writing.versions().get("onnxruntime", ""),
    }
    return writing.run_key(parts)
