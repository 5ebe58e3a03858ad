"""What `tools/measure.py` writes into docs/results/, as values: one file a measurement.

python tools/results.py          # writes docs/results/schema.json, which other programs check with
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from atm_export.runs.writing import versions
from atm_export.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results"
SCHEMA = FOLDER / "schema.json"
UNITS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "bf16")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Share(Settings):
    """`hits` of `of` cases in percent, with the 95 % Wilson interval."""

    percent: float
    low: float
    high: float
    hits: Annotated[int, Field(ge=0)]
    of: Count


class Interval(Settings):
    """A median or mean with its 95 % interval."""

    value: float
    low: float
    high: float


class Row(Settings):
    """weights: random, the demo's, or the first digits of their sha256."""

    model: str
    weights: str


class FidelityRow(Row):
    """A preset against the unmerged model, by the eager reference. unmerged_*: the same images."""

    preset: str
    method: str
    gflops: Positive
    unmerged_gflops: Positive
    top1: Share | None
    unmerged_top1: Share | None
    agreement: Share
    kl: Interval
    images: str


class Part(Settings):
    """The mean over `of` cases of what is right in part, in percent; `hits`: their sum. The
    interval is that of whole hits, and wider than it need be."""

    percent: float
    low: float
    high: float
    hits: Annotated[float, Field(ge=0)]
    of: Count


class EmbeddingRow(Row):
    """A preset's embeddings against the unmerged model's, by the eager reference in batches that
    share r. recall: images whose unmerged nearest neighbour is among the merged 1, 5 or 10 nearest;
    overlap10: of the 10 nearest, those that both find."""

    preset: str
    gflops: Positive
    unmerged_gflops: Positive
    cosine: float
    cosine_worst_percent: float
    recall1: Share
    recall5: Share
    recall10: Share
    overlap10: Part
    batch: Count
    images: str


class SpeedRow(Row):
    """A candidate in ONNX Runtime; speedup over the unmerged export, run in turn; busy: as in
    `Results`, just before."""

    preset: str
    policy: str
    threads: Count
    batch: Count
    median_ms: Positive
    images_per_s: Positive
    speedup: Interval | None
    flops_ratio: Positive
    images: str
    busy: float | None


class CpuRow(Row):
    """A policy on a backend in a precision; speedup over no merging in the same precision there,
    over_fp32 over the same policy in FP32; busy: as in `Results`, just before."""

    preset: str
    backend: str
    precision: str
    policy: str
    threads: Count
    batch: Count
    images_per_s: Positive
    speedup: Interval | None
    over_fp32: Interval | None
    flops_ratio: Positive
    images: str
    busy: float | None


class PrecisionRow(Row):
    """A graph below FP32 against FP32 on pictures, as its export judged it; shares are null where
    there was no case."""

    artifact: str
    precision: str
    images: Count
    cosine_of_nine_tenths: float
    min_cosine: float
    top1_agreement: Share | None
    tokens_differing: Share | None


class EngineRow(Row):
    """An engine that was built, not run. sizes in bytes."""

    merge: str
    artifact: str
    precision: str
    tensorrt: str
    sms: tuple[int, ...]
    bytes: Count
    activation_bytes: int | None


class PytorchRow(Row):
    """ToMe with r tokens a block in PyTorch: merged (`atm_export.merged`), scatter (a plain merge,
    in tools/pytorch_speed.py) or unmerged. training: forward and backward. over_scatter: throughput
    over that of the plain merge, in turn, by CPU time."""

    candidate: Literal["unmerged", "merged", "scatter"]
    r: Count
    training: bool
    threads: Count
    batch: Count
    images_per_s: Positive
    over_scatter: Interval
    busy: float | None


class CoverageRow(Row):
    """An export and its parity ladder."""

    method: str
    merge: str
    proven: bool
    inputs: Count
    comparisons: Count
    decisions_that_differ: Annotated[int, Field(ge=0)]
    logits_max_abs: float


class Machine(Settings):
    """cpu: the model's name as the system gives it."""

    cpu: str
    cores: Count
    system: str


class Results(Settings):
    """date: when it ended; commit: of the source, with + where it was changed since; busy: the
    share of all cores that other programs had in the second before it began (None: not known); far
    above 0 times mean less."""

    form: Literal[1] = 1
    quick: bool
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}\+?$")] | None
    machine: Machine
    busy: float | None
    versions: dict[str, str]


class Fidelity(Results):
    measurement: Literal["fidelity"] = "fidelity"
    rows: tuple[FidelityRow, ...]


class Embeddings(Results):
    measurement: Literal["embeddings"] = "embeddings"
    rows: tuple[EmbeddingRow, ...]


class Speed(Results):
    measurement: Literal["speed"] = "speed"
    rows: tuple[SpeedRow, ...]


class Cpus(Results):
    """units: of the CPU, for numbers of less than 32 bits."""

    measurement: Literal["cpus"] = "cpus"
    units: tuple[str, ...]
    rows: tuple[CpuRow, ...]


class Precision(Results):
    measurement: Literal["precision"] = "precision"
    rows: tuple[PrecisionRow, ...]


class Engines(Results):
    measurement: Literal["engines"] = "engines"
    rows: tuple[EngineRow, ...]


class Coverage(Results):
    measurement: Literal["coverage"] = "coverage"
    rows: tuple[CoverageRow, ...]


class Pytorch(Results):
    measurement: Literal["pytorch"] = "pytorch"
    rows: tuple[PytorchRow, ...]


KINDS: dict[str, type[Results]] = {
    "fidelity": Fidelity,
    "embeddings": Embeddings,
    "coverage": Coverage,
    "speed": Speed,
    "cpus": Cpus,
    "precision": Precision,
    "engines": Engines,
    "pytorch": Pytorch,
}
ANY: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        Fidelity | Embeddings | Speed | Cpus | Precision | Engines | Coverage | Pytorch,
        Field(discriminator="measurement"),
    ]
)


def read(path: Path) -> Any:
    """A file of results; pydantic's ValidationError names what does not fit."""
    return ANY.validate_json(path.read_text(encoding="utf-8"))


def spread(value: float, low: float, high: float, how: str) -> str:
    """A figure and its interval, as tables show them; how: of each number, as in f"{x:.1f}"."""
    return f"{value:{how}} ({low:{how}} to {high:{how}})"


def text_of(results: Results) -> str:
    return json.dumps(results.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def schema_text() -> str:
    """JSON Schema of every file of results."""
    return json.dumps(ANY.json_schema(), indent=1, sort_keys=True) + "\n"


def circumstances(quick: bool, busy: float | None) -> dict[str, Any]:
    """Where and when: all of `Results` but the rows."""
    return {
        "quick": quick,
        "date": date.today().isoformat(),
        "commit": _commit(),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count() or 1, "system": platform.system()},
        "busy": busy,
        "versions": {"python": platform.python_version(), **versions()},
    }


def busy_cores(seconds: float = 1.0) -> float | None:
    """The share of all cores that are at work while this process sleeps."""
    before = _core_times()
    time.sleep(seconds)
    after = _core_times()
    if before is None or after is None:
        return None
    total = sum(after) - sum(before)
    idle = sum(after[3:5]) - sum(before[3:5])  # idle, and waiting for a disk
    return round(1 - idle / total, 3) if total else None


def _core_times() -> list[int] | None:
    path = Path("/proc/stat")
    return (
        [int(n) for n in path.read_text().split("\n")[0].split()[1:9]] if path.is_file() else None
    )


def units() -> tuple[str, ...]:
    """What of UNITS the CPU has, as the system names it."""
    info = Path("/proc/cpuinfo")
    known = set(info.read_text(encoding="utf-8").split()) if info.is_file() else set()
    return tuple(unit for unit in UNITS if unit in known)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
        return done.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "atm_export", "tools")
    return f"{head}{'+' if changed else ''}" if head else None


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    SCHEMA.write_text(schema_text(), encoding="utf-8")
