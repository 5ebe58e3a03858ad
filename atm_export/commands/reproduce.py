"""`atm-export reproduce`: the paper's tables and figures on your weights and images."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from atm_export import loose_files, place
from atm_export.bounds import MAX_BATCH, MAX_WORKERS, checked_threads, whole
from atm_export.errors import ConfigError
from atm_export.measure.data.classes import ClassOrder
from atm_export.measure.data.whole import DataPlace
from atm_export.numbers import Whole

FILES = ("reproduce.json", "report.html")


def _shown(text: str, *names: str) -> Any:
    return Parameter(help=text, name=names or None, negative=())


def reproduce(
    *,
    images: Annotated[str, _shown("ImageNet's validation set, or a part, as for evaluate.")],
    weights: Annotated[
        tuple[str, ...],
        _shown(
            "MODEL=FILE (or MODEL=pretrained): weights that are here; deit_t-fine-tuned=FILE for "
            "table A3. May be given again (default: the published weights of every model)."
        ),
    ] = (),
    table: Annotated[
        tuple[str, ...], _shown("1, 2, 3, 4, A1 to A5; by commas (default: all).")
    ] = (),
    figure: Annotated[tuple[str, ...], _shown("2, 4, 5, 6, 7, A1; by commas (default: all).")] = (),
    batch: Annotated[
        Whole | None, _shown("Images that share r (default: the paper's 1024, 100 for T2T).")
    ] = None,
    labels: Annotated[Path | None, _shown("Labels file, as for evaluate.")] = None,
    class_order: Annotated[
        ClassOrder | None, _shown("What class folders mean, as for evaluate.")
    ] = None,
    threads: Annotated[Whole, _shown("CPU threads (0: all).")] = 0,
    workers: Annotated[Whole | None, _shown("Decoding processes.")] = None,
    out: Annotated[Path, _shown("Folder of journal and results.")] = Path("build/reproduce"),
) -> int:
    """Run the paper's tables and figures again (arXiv 2505.15160), paper beside measured.

    Rows whose weights are not given are listed, not dropped. Table 3, table A1 and figure 5, which
    the paper prints for DeiT-S, run on every DeiT that is here. What was measured is kept: killed,
    the same command goes on. Writes reproduce.json and report.html.

        atm-export reproduce --images imagenet/val --weights deit_t=deit_tiny.pth
        atm-export reproduce --images imagenet/val --weights deit_s=pretrained --table A2,A1
    """
    from atm_export.reproduce.run import Wish
    from atm_export.reproduce.run import reproduce as run_all

    wish = Wish(
        *_parts(table, figure),
        _weights(weights),
        DataPlace(images, labels, class_order),
        None if batch is None else whole(batch, "--batch", 1, MAX_BATCH),
        (os.cpu_count() or 1) if workers is None else whole(workers, "--workers", 0, MAX_WORKERS),
    )
    place.refuse_loss(out, FILES)
    out = place.plain(out)
    if checked_threads(threads, "--threads"):
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    with console.status("starting") as status:

        def say(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                print(text, flush=True)

        facts = run_all(wish, out, say)
    _write(out, facts)
    _print(Console(width=max(120, Console().width)), facts)
    print(f"written   {out}/: {', '.join(FILES)}")
    return 0


def _parts(
    table: tuple[str, ...], figure: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tables and figures as asked for; all where none are."""
    from atm_export.reproduce.rows import FIGURES, TABLES

    tables, figures = (
        tuple(part for text in given for part in text.split(",")) for given in (table, figure)
    )
    return (tables, figures) if tables or figures else (TABLES, FIGURES)


def _weights(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, place_of = text.partition("=")
        if not name or not equals or not place_of:
            raise ConfigError(
                f"--weights {text}: give MODEL=FILE, for example deit_t=deit_tiny.pth"
            )
        if name in found:
            raise ConfigError(f"--weights {name}=... is given twice")
        found[name] = place_of
    return found


def _write(out: Path, facts: dict[str, Any]) -> None:
    from atm_export.report.reproduced import reproduced_page

    text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    written = (text, reproduced_page(facts))
    loose_files.put_files(out, {n: t.encode() for n, t in zip(FILES, written, strict=True)})


def _print(console: Console, facts: dict[str, Any]) -> None:
    from atm_export.report.reproduced import by_part

    for part, rows in by_part(facts["rows"]).items():
        table = Table(box=box.SIMPLE, title_justify="left", title=part[0].upper() + part[1:])
        for name in ("model", "", "GFLOPs, paper", "here", "top-1, paper", "here (95 %)"):
            table.add_column(name, justify="left" if name in ("model", "") else "right")
        table.add_column("as unmerged %", justify="right")
        table.add_column("KL to unmerged", justify="right")
        for row in rows:
            here, top1 = row["here"], row["here"]["top1"]
            table.add_row(
                row["model"],
                row["label"],
                "" if row["gflops"] is None else f"{row['gflops']:.2f}",
                f"{here['gflops']:.3f}",
                "" if row["top1"] is None else f"{row['top1']:.2f}",
                "-"
                if top1 is None
                else f"{top1['percent']:.1f} ({top1['low']:.1f} to {top1['high']:.1f})",
                f"{here['agreement']['percent']:.1f}",
                f"{here['kl']['mean']:.4f}",
            )
        console.print(table)
    for part, rows in by_part(facts["missing"]).items():
        needed = ", ".join(dict.fromkeys(row["weights"] or row["model"] for row in rows))
        console.print(
            f"{part}: {len(rows)} rows not measured, for want of weights: {needed}",
            highlight=False,
            markup=False,
        )
