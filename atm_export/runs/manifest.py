"""A manifest as values: made by `manifest_of` of what JSON holds, checked, of any format read.

Each part that may say more than is known here (a method's own facts, fields of later versions)
keeps it in `document`. Nothing here imports more than NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from atm_export.inputs import InputSpec, stated_input
from atm_export.runs.engine_facts import EngineFacts, LowPrecisionFacts, TensorFacts
from atm_export.runs.manifest_check import check_manifest
from atm_export.shapes import fields, one_of
from atm_export.tasks.stated import Statement, stated, task_facts

FORMAT = 3  # of new folders
READ = (2, 3)  # formats that are read
PROVEN = "proven"


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of a file of the folder."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class WeightsFacts:
    """The weights that were exported. document: where they come from too."""

    sha256: str
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class MethodFacts:
    """What the method does. merge: adaptive, per-image or frozen; summary: one line that says it;
    preset: whose settings it has, or None. document: all of it, as the method takes it back."""

    name: str
    merge: str
    summary: str
    preset: str | None
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        name, merge, summary = (document[key] for key in ("name", "merge", "summary"))
        return cls(name, merge, summary, document.get("preset"), document)

    @property
    def more(self) -> Mapping[str, Any]:
        """What the method itself adds, such as thresholds of each block."""
        known = ("name", "merge", "summary", "preset")
        return {key: value for key, value in self.document.items() if key not in known}


@dataclass(frozen=True)
class GoldenFacts:
    """The file of golden vectors. tolerance: how far answers may lie from them, by output, with
    `picture_` before the name where a JPEG file is decoded first; and why, in words."""

    file: str
    tolerance: Mapping[str, Any]
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Manifest:
    """What a run folder says of itself.

    config: as `config.exported_config` takes it. input: what the graph takes; answers: the task and
    its outputs; outputs: all of the graph's, traces too. labels: of the classes, if they are known.
    golden: None where none were kept. low_precision: graphs below FP32, by file. proven_on:
    backends with their versions; graphs: files of FP32 graphs for a backend alone, by its name.
    document: all of it as JSON has it, in the form of today's format:
    what is written where something is added.
    """

    format: int
    run_key: str
    status: str
    model: str
    config: Mapping[str, Any]
    weights: WeightsFacts
    method: MethodFacts
    input: InputSpec
    answers: Statement
    outputs: Mapping[str, TensorFacts]
    opset: int
    labels: tuple[str, ...] | None
    licence: str | None
    notes: tuple[str, ...]
    golden: GoldenFacts | None
    files: Mapping[str, FileEntry]
    engines: Mapping[str, EngineFacts]
    low_precision: Mapping[str, LowPrecisionFacts]
    proven_on: Mapping[str, str]
    graphs: Mapping[str, str]
    document: Mapping[str, Any] = field(repr=False)

    def low_precision_of(self, backend: str) -> Mapping[str, str]:
        """By precision, the file of this backend's graph."""
        low = self.low_precision.items()
        return {facts.precision: name for name, facts in low if facts.backend == backend}

    @property
    def proven(self) -> bool:
        """Whether parity with PyTorch was proven."""
        return self.status == PROVEN


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of any format that is read, in the form of today's.

    Format 2 knew classifiers alone, proven on ONNX Runtime, and weights inside the graph.
    """
    if document["format"] == FORMAT:
        return dict(document)
    return {"task": task_facts(document), "proven_on": {}, **document, "format": FORMAT}


def manifest_of(document: Mapping[str, Any]) -> Manifest:
    """The values of a manifest; Misfit, a ValueError, names the first field that is missing or
    cannot be meant."""
    fields({"format": one_of(*READ)})(document, "")
    told = upgraded(document)
    check_manifest(told)
    answers, golden = stated(told), told["golden"]
    main = answers.main.name
    return Manifest(
        format=told["format"],
        run_key=told["run_key"],
        status=told["status"],
        model=told["model"],
        config=told["config"],
        weights=WeightsFacts(told["weights"]["sha256"], told["weights"]),
        method=MethodFacts.of(told["method"]),
        input=stated_input(told),
        answers=answers,
        outputs={k: TensorFacts.of(each) for k, each in told["interface"]["outputs"].items()},
        opset=told["opset"],
        labels=None if told["labels"] is None else tuple(told["labels"]),
        licence=told["licence"],
        notes=tuple(told["notes"]),
        golden=None if golden is None else GoldenFacts(golden["file"], golden["tolerance"], golden),
        files={k: FileEntry(each["bytes"], each["sha256"]) for k, each in told["files"].items()},
        engines={k: EngineFacts.of_run(each, main) for k, each in told.get("engines", {}).items()},
        low_precision={
            name: LowPrecisionFacts.of(each, main)
            for name, each in told.get("low_precision", {}).items()
        },
        proven_on=told.get("proven_on", {}),
        graphs=told.get("graphs", {}),
        document=told,
    )
