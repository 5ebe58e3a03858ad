"""Results in a run folder that are read again: report.json, evaluation-RUNNER.json, bench.json.

Each is checked as it is read, so that page and console may rely on its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atm_export.errors import RunFolderError
from atm_export.shapes import Check, fields, flag, items, maybe, number, sha256, table, text, whole
from atm_export.strict_json import read
from atm_export.tasks import tasks
from atm_export.tasks.classify import Classify
from atm_export.tasks.judge import Judge
from atm_export.tasks.stated import check_task, task_facts

BENCH_FILE = "bench.json"
REPORT_FILE = "report.json"
COST = number(1e-9, 1e6)  # GFLOPs
RATIO = number(0, 1e9)
MS = number(0, 1e9)
PER_BLOCK = items(number(0, 1e6), 1, 4096)

_LATENCY_ROW = fields(
    {
        "batch": whole(1),
        "rounds": whole(),
        "median_ms": fields({"merged": MS, "unmerged": MS}),
        "speedup": fields({"merged": RATIO}),
        "flops_ratio": RATIO,
    }
)
REPORT = fields(
    {
        "model": text,
        "method": fields({"summary": text}, {"theta_per_block": items(maybe(number()), 1, 4096)}),
        "weights": fields({"sha256": sha256}, {"source": text, "meaningless_accuracy": flag}),
        "notes": items(text),
        "images": fields({"source": text}),
        "parity": fields(
            {
                "proven": flag,
                "comparisons": whole(),
                "inputs": whole(),
                "decisions_that_differ": whole(),
            },
            {"backends": table(text)},
        ),
        "versions": table(text),
        "gflops": fields(
            dict.fromkeys(("mean", "min", "max", "unmerged"), COST)
            | {"images": whole(), "batch": whole()},
            {"paper": maybe(COST), "note": text},
        ),
        "tokens": fields({"mean_after_block": PER_BLOCK}, {"mean_merged_in_block": PER_BLOCK}),
    },
    {
        "task": check_task,
        "accuracy": fields(
            {"images": whole()}
            | {name: number(0, 100) for name in ("top1", "unmerged_top1", "agreement")}
        ),
        "latency": fields({"runner": text, "threads": whole(), "rows": items(_LATENCY_ROW)}),
        "information_loss": fields(
            {
                "thetas": items(number(-1, 1)),
                "blocks": items(whole(1, 4096)),
                "cosine_distance": items(items(number())),
                "images": whole(),
            }
        ),
    },
)
_EVALUATION = fields(
    {
        "runner": text,
        "device": text,
        "batch": whole(),
        "threads": whole(),
        "data": fields({"images": whole(), "place": text, "labels": maybe(text)}),
        "unreadable": items(fields({"image": text, "reason": text})),
        "gflops": fields(dict.fromkeys(("mean", "unmerged", "min", "median", "max"), COST)),
        "tokens": fields({"mean_after_block": PER_BLOCK, "source": text}),
    },
    {
        "task": text,
        "rate": fields({}, {"images": whole(), "images_per_s": RATIO, "share_in_model": RATIO}),
    },
)
BENCH = fields(
    {
        "rows": items(
            fields(
                {"backend": text, "candidate": text, "batch": whole(1)}
                | dict.fromkeys(("median_ms", "p90_ms", "p99_ms"), MS)
                | {"images_per_s": RATIO, "flops_ratio": RATIO},
                {
                    name: fields(dict.fromkeys(("median", "low", "high"), RATIO))
                    for name in ("speedup", "over_fp32")
                },
            )
        ),
        "images": whole(),
        "threads": whole(),
        "source": text,
        "recommendation": text,
    }
)


def EVALUATION(facts: Any, at: str) -> None:
    """Misfit unless this is an evaluation, with what its task's judge says."""
    _EVALUATION(facts, at)
    judge = judge_in(facts)
    if judge is not None:
        fields({}, judge.shape)(facts, at)


def judge_in(facts: Mapping[str, Any]) -> Judge | None:
    """The judge of an evaluation or comparison (a classifier's where it does not say); None where
    the task is not known here."""
    task = facts.get("task", Classify.name)
    return tasks[task].judge if task in tasks else None


def read_document(path: Path, check: Check) -> dict[str, Any]:
    """The document at `path`; RunFolderError names what it lacks."""
    facts = read(path, RunFolderError, dict, fix="make it again, or export with --force")
    try:
        check(facts, "")
    except ValueError as error:
        raise RunFolderError(f"{path}: {error}; make it again, or export with --force") from error
    return facts


def output_names(report: Mapping[str, Any]) -> list[str]:
    """The outputs of the task of a report, the main one first."""
    return [str(output["name"]) for output in task_facts(report)["outputs"]]


def _check_report(report: Any, at: str) -> None:
    REPORT(report, at)
    worst = {f"{name}_max_abs": maybe(number()) for name in output_names(report)}
    fields(worst)(report["parity"], "parity")


def read_report(folder: Path) -> dict[str, Any]:
    """report.json of a folder."""
    report = read_document(folder / REPORT_FILE, _check_report)
    loss: Mapping[str, Any] = report.get("information_loss", {})
    rows = loss.get("cosine_distance", [])
    if len(rows) != len(loss.get("thetas", [])) or any(
        len(row) != len(loss["blocks"]) for row in rows
    ):
        raise RunFolderError(f"{folder / REPORT_FILE}: information_loss does not fit together")
    return report
