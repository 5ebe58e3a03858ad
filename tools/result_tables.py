"""What `compare`, `reproduce`, tools/method_speed.py and tools/sparse_presets.py wrote, as rows of
tables for the docs.

docs/results/ keeps their files without pictures and without what tells of one machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from results import FOLDER, spread

OF_MACHINES = ("cpu_affinity", "load_average", "processor", "recommendation")

Facts = Mapping[str, Any]
Rows = Iterator[Sequence[str]]


def keep(path: Path) -> None:
    """Put what a command wrote into docs/results/, for the tables."""
    facts = kept(json.loads(path.read_text(encoding="utf-8")))
    text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (FOLDER / f"{name_of(facts)}.json").write_text(text, encoding="utf-8")


def name_of(facts: Facts) -> str:
    """compare-deit_t, reproduce-deit_t or speed-deit_t."""
    if "studies" in facts:
        return f"reproduce-{'-'.join(facts['weights'])}"
    return f"{'speed' if 'repeats' in facts else 'compare'}-{facts['model']}"


def kept(facts: dict[str, Any]) -> dict[str, Any]:
    """What the docs keep of a result."""
    for study in facts.get("studies", {}).values():
        study.pop("pictures", None)
    if facts.get("latency"):
        facts["latency"] = {k: v for k, v in facts["latency"].items() if k not in OF_MACHINES}
    facts.pop("missing", None)
    return facts


def rows_of(name: str) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Head and rows of a result; NAME/PART: of the rows of one table or figure."""
    name, _, part = name.partition("/")
    facts = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    if part:
        rows = reproduced([row for row in facts["rows"] if row["part"] == part.replace("-", " ")])
    elif name.startswith("sparse-"):
        rows = sparse(facts)
    else:
        rows = timed(facts) if "repeats" in facts else compared(facts)
    head, *found = rows
    return head, found


def compared(facts: Facts) -> Rows:
    """What each method costs and loses."""
    first = facts["rows"][0]["name"]
    yield "method", "GFLOPs", "top-1", "agreement", "KL", f"KL less that of `{first}`"
    for row in facts["rows"]:
        yield (
            f"`{row['method']}`, {_settings(row['settings'])}",
            f"{row['gflops']:.3f}",
            f"{row['top1']['percent']:.1f}",
            f"{row['agreement']['percent']:.1f}",
            _mean(row["kl"]),
            _mean(row["kl_difference"], "+.4f") if "kl_difference" in row else "",
        )


def timed(facts: Facts) -> Rows:
    """What arrives of what is saved."""
    yield "method", "FLOPs ratio", "times as fast", "share", "least to most", "by least times"
    for row in facts["rows"]:
        shares = [ratio / row["flops_ratio"] for ratio in row["ratios"]]
        yield (
            f"`{row['method']}`, {_settings(row['settings'])}",
            f"{row['flops_ratio']:.2f}",
            f"{median(row['ratios']):.2f}",
            f"{median(shares):.2f}",
            f"{min(shares):.2f} to {max(shares):.2f}",
            f"{median(row['least']) / row['flops_ratio']:.2f}",
        )


def sparse(facts: Facts) -> Rows:
    """What merging in few blocks loses at one cost."""
    yield "blocks that merge", "theta_min", "GFLOPs", "top-1", "agreement", "KL"
    for row in facts["rows"]:
        blocks = row["settings"].get("merge_blocks")
        yield (
            "all" if blocks is None else ", ".join(map(str, blocks)),
            f"{row['settings']['theta_min']:g}",
            f"{row['gflops']:.3f}",
            f"{row['top1']['percent']:.1f}",
            f"{row['agreement']['percent']:.1f}",
            _mean(row["kl"]),
        )


def reproduced(rows: Sequence[Facts]) -> Rows:
    """The paper beside what was measured."""
    yield "row", "GFLOPs, paper", "here", "top-1, paper", "here (95 %)", "agreement", "KL"
    for row in rows:
        here = row["here"]
        yield (
            row["label"],
            "" if row["gflops"] is None else f"{row['gflops']:.2f}",
            f"{here['gflops']:.3f}",
            "" if row["top1"] is None else f"{row['top1']:.2f}",
            spread(*(here["top1"][key] for key in ("percent", "low", "high")), ".1f"),
            f"{here['agreement']['percent']:.1f}",
            f"{here['kl']['mean']:.4f}",
        )


def _settings(settings: Facts) -> str:
    told = {k: v for k, v in settings.items() if v is not None}
    return ", ".join(f"{name}={_value(value)}" for name, value in told.items())


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_value, value))
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _mean(found: Facts, how: str = ".4f") -> str:
    return spread(found["mean"], found["low"], found["high"], how)
