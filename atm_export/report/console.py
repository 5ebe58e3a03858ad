"""What a run prints at its end; the numbers are those of report.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from atm_export.backends import ONNXRUNTIME
from atm_export.report.documents import output_names
from atm_export.report.evaluation import counted_text, parity_text


def print_report(console: Console, out: Path, report: Mapping[str, Any]) -> None:
    """A dozen lines: what was exported, whether it is proven, and what it saves."""
    for line in _lines(out, report):
        console.print(line, highlight=False, soft_wrap=True)


def _lines(out: Path, report: Mapping[str, Any]) -> Iterator[str]:
    yield f"[bold]{report['model']}[/]  {report['method']['summary']}"
    if report["weights"].get("meaningless_accuracy"):
        yield "[bold yellow]random weights: accuracy means nothing[/]"
    yield from _proof(report)
    yield from _cost(report)
    if "accuracy" in report:
        yield _accuracy(report["accuracy"])
    latency = report.get("latency", {})
    for row in latency.get("rows", []):
        yield _latency(row, latency["threads"])
    main = output_names(report)[0]
    for name, engine in report.get("engines", {}).items():
        yield _engine(name, engine, main)
    yield f"written   {out}/"


def _proof(report: Mapping[str, Any]) -> Iterator[str]:
    parity = report["parity"]
    proof = "[bold green]proven[/]" if parity["proven"] else "[bold red]UNPROVEN[/]"
    yield (
        f"parity    {proof}: {parity['comparisons']} comparisons on {parity['inputs']} inputs, "
        f"{parity_text(report)}, decisions that differ: {parity['decisions_that_differ']}"
    )
    others = [about for name, about in parity.get("backends", {}).items() if name != ONNXRUNTIME]
    if others:
        yield f"proven    on {', '.join(others)} too"


def _cost(report: Mapping[str, Any]) -> Iterator[str]:
    flops = report["gflops"]
    merged, plain = flops["mean"], flops["unmerged"]
    paper = f"; paper {flops['paper']:g}" if flops.get("paper") else ""
    yield (
        f"GFLOPs    {merged:.3f} of {plain:.3f} an image ({100 * (merged / plain - 1):+.0f} %) on "
        f"{flops['images']} {report['images']['source']}{paper}"
    )
    if "note" in flops:
        yield f"          {flops['note']}"
    yield f"tokens    {' '.join(f'{n:.0f}' for n in report['tokens']['mean_after_block'])}"


def _accuracy(accuracy: Mapping[str, Any]) -> str:
    return (
        f"accuracy  {accuracy['top1']:.2f} % top-1, unmerged {accuracy['unmerged_top1']:.2f} %, "
        f"agreement {accuracy['agreement']:.2f} % on {accuracy['images']} held-out images"
    )


def _latency(row: Mapping[str, Any], threads: int) -> str:
    ms = row["median_ms"]
    return (
        f"latency   batch {row['batch']}: {ms['merged']:.1f} ms, unmerged {ms['unmerged']:.1f} ms, "
        f"speed-up {row['speedup']['merged']:.2f} (FLOPs ratio {row['flops_ratio']:.2f}), "
        f"{threads} threads, median of {row['rounds']}"
    )


def _engine(name: str, engine: Mapping[str, Any], main: str) -> str:
    checked = engine["validation"]
    equal = checked.get("top1_agreement")
    top1 = "" if equal is None else f"top-1 equal in {counted_text(equal)}, "
    return (
        f"engine    {name}: {engine['bytes'] / 1e6:.1f} MB, batch "
        f"{', '.join(engine['profiles'])}; {engine['run']['status']}; against FP32: {main} "
        f"cosine {checked[f'cosine_{main}_of_nine_tenths']:.5f} in nine of ten images "
        f"({checked[f'min_cosine_{main}']:.5f} at worst), {top1}tokens differing "
        f"{counted_text(checked['tokens_differing'])}"
    )
