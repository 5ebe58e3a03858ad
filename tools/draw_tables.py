"""Draw the tables of README.md and docs/ from the files that commands and tools wrote.

    python tools/draw_tables.py            # into the pages, between their marks
    python tools/draw_tables.py --check    # exit code 1 where a page says something else
    python tools/draw_tables.py build/compare-deit_t/compare.json build/reproduce/reproduce.json

Files of `compare`, `reproduce` and tools/method_speed.py are first kept in docs/results/. A table
stands between `<!-- table: NAME -->` and `<!-- end of table -->`; what is between them is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import result_tables
from results import FOLDER, ROOT, Interval, Share, read, spread

from atm_export.model_configs import load_model_config, model_names

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.S)
FEW = "times were taken while the machine had other work, so read them loosely"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percent(share: Share | None) -> str:
    return "" if share is None else spread(share.percent, share.low, share.high, ".1f")


def interval(found: Interval | None, digits: int) -> str:
    return "" if found is None else spread(found.value, found.low, found.high, f".{digits}f")


def measured(name: str) -> Any:
    return read(FOLDER / f"{name}.json")


def disturbed(found: Any) -> bool:
    """Whether other programs had more than a tenth of the cores before any of its rows."""
    return any(row.busy is None or row.busy > 0.1 for row in found.rows)


def source(found: Any) -> str:
    """Where and when: the line under a table."""
    busy = (
        f"; {FEW}" if found.measurement in ("speed", "cpus", "pytorch") and disturbed(found) else ""
    )
    machine = f"{found.machine.cpu}, {found.machine.cores} cores"
    versions = ", ".join(f"{k} {found.versions[k]}" for k in ("torch", "onnxruntime", "timm"))
    return (
        f"\n{found.date}, commit {found.commit}, {machine}{busy}; {versions}; "
        f"`tools/measure.py{' --quick' if found.quick else ''}`.\n"
    )


def headline() -> str:
    """A model in one line: what it costs, loses and gains."""
    speeds, rows = measured("speed"), []
    for row in measured("fidelity").rows:
        arrived = [
            interval(each.speedup, 2)
            for batch in (1, 8)
            for each in speeds.rows
            if (each.model, each.policy, each.threads, each.batch)
            == (row.model, "frozen", 2, batch)
        ]
        rows.append(
            [
                f"`{row.model}`, {row.method} `{row.preset}`",
                f"{row.unmerged_gflops:.2f} -> {row.gflops:.2f}",
                f"{percent(row.unmerged_top1)} -> {percent(row.top1)}",
                percent(row.agreement),
                " / ".join(arrived) or "not measured",
            ]
        )
    head = ["model", "GFLOPs", "top-1 %", "same answer %", "speed-up, batch 1 / 8"]
    where = (
        f"\nOn {measured('fidelity').rows[0].images}, 95 % intervals in brackets; GFLOPs are 1e9 "
        "multiply-adds an image. Speed-up: `--merge frozen` over the unmerged export in ONNX "
        f"Runtime, in turn, two threads of {speeds.machine.cpu}"
        f"{f' ({FEW})' if disturbed(speeds) else ''}.\n"
    )
    return table(head, rows) + where


def fidelity() -> str:
    found = measured("fidelity")
    head = ["model", "preset", "GFLOPs", "unmerged", "top-1 %", "unmerged", "same answer %", "KL"]
    rows = [
        [
            f"`{row.model}` ({row.weights})",
            f"`{row.preset}`",
            f"{row.gflops:.3f}",
            f"{row.unmerged_gflops:.3f}",
            percent(row.top1),
            percent(row.unmerged_top1),
            percent(row.agreement),
            interval(row.kl, 4),
        ]
        for row in found.rows
    ]
    return table(head, rows) + f"\nOn {found.rows[0].images}." + source(found)


def embeddings() -> str:
    found = measured("embeddings")
    return (
        sourced(
            "embeddings",
            {
                "preset": lambda row: f"`{row.preset}`",
                "GFLOPs": lambda row: f"{row.gflops:.3f}",
                "cosine, median": lambda row: f"{row.cosine:.4f}",
                "worst 1 %": lambda row: f"{row.cosine_worst_percent:.4f}",
                "recall@1": lambda row: percent(row.recall1),
                "recall@5": lambda row: percent(row.recall5),
                "recall@10": lambda row: percent(row.recall10),
                "overlap@10": lambda row: percent(row.overlap10),
            },
        )
        + f"On {found.rows[0].images}, by PyTorch in batches of {found.rows[0].batch}.\n"
    )


def curves() -> str:
    """What docs/accuracy.png shows."""
    document = json.loads((ROOT / "docs" / "curves.json").read_text(encoding="utf-8"))
    rows = []
    for key, points in document.items():
        name = key.split()[0].removeprefix("timm:")
        for row in sorted(points.values(), key=lambda row: (row["method"], -row["gflops"])):
            point = "" if row["method"] == "unmerged" else row["point"]
            share = Share.model_validate(row["top1"])
            rows.append([f"`{name}`", row["method"], point, f"{row['gflops']:.3f}", percent(share)])
    return table(["model", "method", "alpha, beta, theta_min or r", "GFLOPs", "top-1 %"], rows)


def sourced(name: str, columns: Mapping[str, Callable[[Any], str]]) -> str:
    """A measurement as a table, what each column shows of a row, and where it is from."""
    found = measured(name)
    rows = [[shown(row) for shown in columns.values()] for row in found.rows]
    return table(list(columns), rows) + source(found)


def _model(row: Any) -> str:
    return f"`{row.model}` ({row.weights})"


def speed() -> str:
    return sourced(
        "speed",
        {
            "model": _model,
            "policy": lambda row: row.policy,
            "threads": lambda row: str(row.threads),
            "batch": lambda row: str(row.batch),
            "ms": lambda row: f"{row.median_ms:.1f}",
            "speed-up": lambda row: interval(row.speedup, 2),
            "FLOPs ratio": lambda row: f"{row.flops_ratio:.2f}",
        },
    )


def cpus() -> str:
    """Batches side by side: images a second, and of the FLOPs ratio the share that arrives."""
    found, rows = measured("cpus"), {}
    for row in found.rows:
        key = (_model(row), row.backend, row.precision, row.policy, str(row.threads))
        share = "" if row.speedup is None else f", {row.speedup.value / row.flops_ratio:.2f}"
        faster = "" if row.over_fp32 is None else f", x{row.over_fp32.value:.2f}"
        rows.setdefault(key, {})[row.batch] = f"{row.images_per_s:.0f}{share}{faster}"
    sizes = sorted({row.batch for row in found.rows})
    head = ["model", "backend", "precision", "policy", "threads", *(f"batch {n}" for n in sizes)]
    body = [[*key, *(by.get(n, "") for n in sizes)] for key, by in rows.items()]
    has = ", ".join(found.units) or "none of the units for less than 32 bits"
    return table(head, body) + f"\nThe CPU has {has}." + source(found)


def precision() -> str:
    return sourced(
        "precision",
        {
            "model": _model,
            "file": lambda row: f"`{row.artifact}`",
            "cosine of nine in ten": lambda row: f"{row.cosine_of_nine_tenths:.4f}",
            "worst": lambda row: f"{row.min_cosine:.4f}",
            "same answer %": lambda row: percent(row.top1_agreement),
            "tokens that differ %": lambda row: percent(row.tokens_differing),
        },
    )


def engines() -> str:
    def megabytes(size: int | None) -> str:
        return "" if size is None else f"{size / 1e6:.1f}"

    return sourced(
        "engines",
        {
            "model": lambda row: f"`{row.model}`",
            "merge": lambda row: row.merge,
            "engine": lambda row: f"`{row.artifact}`",
            "TensorRT": lambda row: row.tensorrt,
            "SM": lambda row: ", ".join(map(str, row.sms)),
            "MB": lambda row: megabytes(row.bytes),
            "activations, MB": lambda row: megabytes(row.activation_bytes),
        },
    )


def pytorch() -> str:
    return sourced(
        "pytorch",
        {
            "model": _model,
            "": lambda row: "forward and backward" if row.training else "forward",
            "batch": lambda row: str(row.batch),
            "module": lambda row: row.candidate,
            "r": lambda row: "" if row.candidate == "unmerged" else str(row.r),
            "images/s": lambda row: f"{row.images_per_s:.1f}",
            "over scatter": lambda row: interval(row.over_scatter, 2),
        },
    )


def coverage() -> str:
    return sourced(
        "coverage",
        {
            "model": _model,
            "method": lambda row: row.method,
            "merge": lambda row: row.merge,
            "proven": lambda row: "yes" if row.proven else "no",
            "inputs": lambda row: str(row.inputs),
            "comparisons": lambda row: str(row.comparisons),
            "logits within": lambda row: f"{row.logits_max_abs:.1e}",
        },
    )


def models() -> str:
    """The models of the paper, from their configs."""
    rows = []
    for name in model_names():
        config = load_model_config(name)
        preset, paper = config.presets[str(config.default_preset)], config.paper
        if paper is None:
            continue
        here = [config.measured.gflops, config.measured.merged_gflops] if config.measured else []
        file = config.published.url.rpartition("/")[2] if config.published else ""
        weights = f"`{file}`, {config.published.licence}" if config.published else "timm's"
        rows.append(
            [
                f"`{name}`",
                f"{paper.gflops:.2f} -> {preset.gflops:.2f}",
                f"{paper.top1:.2f} -> {preset.top1:.2f}",
                " -> ".join(f"{each:.3f}" for each in here if each),
                weights,
            ]
        )
    head = ["model", "paper: GFLOPs", "paper: top-1 %", "GFLOPs here", "published weights, licence"]
    return table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        headline,
        fidelity,
        embeddings,
        curves,
        speed,
        cpus,
        precision,
        engines,
        coverage,
        models,
        pytorch,
    )
}


def drawn(text: str) -> str:
    """A page with its tables as the files have them."""
    return MARKED.sub(lambda found: f"{found[1]}\n{_drawn(found[2])}\n{found[3]}", text)


def _drawn(name: str) -> str:
    return TABLES[name]() if name in TABLES else table(*result_tables.rows_of(name))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("files", type=Path, nargs="*")
    args = parser.parse_args()
    for file in args.files:
        result_tables.keep(file)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if text == drawn(text):
            continue
        if args.check:
            raise SystemExit(f"{page.name}: python tools/draw_tables.py draws it anew")
        page.write_text(drawn(text), encoding="utf-8")


if __name__ == "__main__":
    main()
