"""What `evaluate` prints; the numbers are those of evaluation-RUNNER.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from atm_export.report.documents import judge_in, output_names


def counted_text(share: Mapping[str, Any] | float) -> str:
    """Cases of all, then the share with its interval; a mere share 0..1 in percent."""
    if not isinstance(share, Mapping):
        return f"{100 * share:.2f} %"
    return f"{share['hits']} of {share['of']}, {share_text(share)}"


def parity_text(report: Mapping[str, Any]) -> str:
    """How far each output was from the reference at worst."""
    worst = {name: report["parity"][f"{name}_max_abs"] for name in output_names(report)}
    return ", ".join(
        f"{name} {'not finite' if most is None else f'within {most:.1e}'}"
        for name, most in worst.items()
    )


def share_text(share: Mapping[str, Any]) -> str:
    """`82.60 % (79.0 to 85.7)`: percent and the 95 % interval."""
    if share["percent"] is None:
        return "-"
    return f"{share['percent']:.2f} % ({share['low']:.1f} to {share['high']:.1f})"


def evaluation_lines(facts: Mapping[str, Any]) -> list[str]:
    """One line a figure."""
    flops, tokens = facts["gflops"], facts["tokens"]
    saved = 100 * (flops["mean"] / flops["unmerged"] - 1)
    lines = [
        f"runner     {facts['runner']} ({facts['device']}), batch {facts['batch']}, "
        f"{facts['threads']} threads",
        f"images     {facts['data']['images']} counted, {len(facts['unreadable'])} unreadable; "
        f"{facts['data']['labels'] or 'no labels'}",
    ]
    others = facts["data"].get("other_files")
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.items())
        lines.append(f"beside     files that are no images: {kinds}")
    lines += [f"unreadable {row['image']}: {row['reason']}" for row in facts["unreadable"]]
    judge = judge_in(facts)
    lines += [] if judge is None else judge.lines(facts, share_text)
    lines += [
        f"GFLOPs     {flops['mean']:.3f} of {flops['unmerged']:.3f} an image ({saved:+.0f} %); "
        f"min {flops['min']:.3f}, median {flops['median']:.3f}, max {flops['max']:.3f}",
        f"tokens     {' '.join(f'{n:.0f}' for n in tokens['mean_after_block'])}; "
        f"from {tokens['source']}",
    ]
    rate = facts.get("rate", {})
    if rate.get("images"):
        lines.append(
            f"rate       {rate['images_per_s']:.1f} images/s; the models had "
            f"{100 * rate['share_in_model']:.0f} % of the time"
        )
    return lines


def print_evaluation(console: Console, facts: Mapping[str, Any]) -> None:
    """The evaluation on a console."""
    for line in evaluation_lines(facts):
        console.print(line, highlight=False, markup=False)
