"""What a run prints at its end; the numbers are those of report.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from atm_export.backends import ONNXRUNTIME
from atm_export.report.documents import output_names
from atm_export.report.evaluation import counted_text, parity_text


def print_report(console: Console, out: Path, report: Mapping[str, Any]) -> None:
    """A dozen lines: what was exported, whether it is proven, and what it saves."""
    flops, parity = report["gflops"], report["parity"]
    say = console.print
    say(f"[bold]{report['model']}[/]  {report['method']['summary']}", highlight=False)
    if report["weights"].get("meaningless_accuracy"):
        say("[bold yellow]random weights: accuracy means nothing[/]")
    proof = "[bold green]proven[/]" if parity["proven"] else "[bold red]UNPROVEN[/]"
    say(
        f"parity    {proof}: {parity['comparisons']} comparisons on {parity['inputs']} inputs, "
        f"{parity_text(report)}, decisions that differ: "
        f"{parity['decisions_that_differ']}",
        highlight=False,
    )
    others = [about for name, about in parity.get("backends", {}).items() if name != ONNXRUNTIME]
    if others:
        say(f"proven    on {', '.join(others)} too", highlight=False)
    merged, plain = flops["mean"], flops["unmerged"]
    paper = f"; paper {flops['paper']:g}" if flops.get("paper") else ""
    say(
        f"GFLOPs    {merged:.3f} of {plain:.3f} an image ({100 * (merged / plain - 1):+.0f} %) on "
        f"{flops['images']} {report['images']['source']}{paper}",
        highlight=False,
    )
    if "note" in flops:
        say(f"          {flops['note']}", highlight=False, soft_wrap=True)
    say(
        f"tokens    {' '.join(f'{n:.0f}' for n in report['tokens']['mean_after_block'])}",
        highlight=False,
    )
    accuracy = report.get("accuracy")
    if accuracy:
        say(
            f"accuracy  {accuracy['top1']:.2f} % top-1, unmerged "
            f"{accuracy['unmerged_top1']:.2f} %, "
            f"agreement {accuracy['agreement']:.2f} % on {accuracy['images']} held-out images",
            highlight=False,
        )
    for row in report.get("latency", {}).get("rows", []):
        ms, speed = row["median_ms"], row["speedup"]["merged"]
        say(
            f"latency   batch {row['batch']}: {ms['merged']:.1f} ms, "
            f"unmerged {ms['unmerged']:.1f} ms, "
            f"speed-up {speed:.2f} (FLOPs ratio {row['flops_ratio']:.2f}), "
            f"{report['latency']['threads']} threads, median of {row['rounds']}",
            highlight=False,
        )
    for name, engine in report.get("engines", {}).items():
        checked, main = engine["validation"], output_names(report)[0]
        equal = checked.get("top1_agreement")
        top1 = "" if equal is None else f"top-1 equal in {counted_text(equal)}, "
        say(
            f"engine    {name}: {engine['bytes'] / 1e6:.1f} MB, batch "
            f"{', '.join(engine['profiles'])}; {engine['run']['status']}; against FP32: {main} "
            f"cosine {checked[f'cosine_{main}_of_nine_tenths']:.5f} in nine of ten images "
            f"({checked[f'min_cosine_{main}']:.5f} at worst), {top1}tokens differing "
            f"{counted_text(checked['tokens_differing'])}",
            highlight=False,
        )
    say(f"written   {out}/", highlight=False, soft_wrap=True)
