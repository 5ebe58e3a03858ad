"""Does the saving in FLOPs arrive on the clock, for every model of the paper?

    python tools/bench_models.py --images DIR
    python tools/bench_models.py --images DIR --models lvvit_s,t2t_vit_t_14 --rounds 15

Runs `tools/bench_speed.py` once a model, at batch 8, on random weights with a frozen schedule
spread evenly to meet the paper's GFLOPs of the model's default preset (random weights merge nothing
sensible at the paper's thresholds; which tokens merge does not change what they cost). Columns are
those of `bench_speed`; `unmerged` is the speed of our own unmerged export over torch's, and
`realised (ours)` the share of the saving that arrives over that one.

Prints a Markdown table, one row a model, and as its last line one JSON object. A model whose run
fails is named in it and does not end the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atm_export.model_configs import load_model_config, model_names

SPEED = Path(__file__).with_name("bench_speed.py")
COLUMNS = {
    "model": "model",
    "preset": "preset",
    "unmerged_gflops": "GFLOPs unmerged",
    "gflops": "merged",
    "flops_ratio": "FLOPs ratio",
    "speedup": "speed-up",
    "realised": "realised",
    "unmerged_speedup": "unmerged",
    "realised_ours": "realised (ours)",
    "cpu_share": "CPU share",
}

Row = dict[str, Any]


def paper_models() -> list[str]:
    """Models whose figures the paper reports."""
    return [name for name in model_names() if load_model_config(name).paper is not None]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of images; up to 64 are used")
    add("--models", default=",".join(paper_models()), help="a list (default: the paper's models)")
    add("--weights", default="random", help="random, pretrained, or a file (for one model)")
    add("--batch", type=int, default=8, help="batch size (default: %(default)s)")
    add("--threads", type=int, default=2, help="threads (default: %(default)s)")
    add("--rounds", type=int, default=12, help="counted rounds (default: %(default)s)")
    return parser.parse_args(argv)


def command(model: str, args: argparse.Namespace) -> list[str]:
    """The `bench_speed` command of one model."""
    return [
        *(sys.executable, str(SPEED), "--model", model, "--weights", args.weights),
        *("--images", args.images, "--batches", str(args.batch), "--threads", str(args.threads)),
        *("--rounds", str(args.rounds), "--candidates", "none,frozen"),
    ]


def row_of(found: Row) -> Row:
    """One row from the JSON line of `bench_speed`."""
    by_name = {row["candidate"]: row for row in found["rows"]}
    frozen, none = by_name["frozen"], by_name["none"]
    ours = none["ms_per_image"] / frozen["ms_per_image"]
    return {
        **frozen,
        "model": found["model"],
        "preset": found["preset"],
        "unmerged_gflops": found["unmerged_gflops"],
        "unmerged_speedup": none["speedup"],
        "realised_ours": round(ours / frozen["flops_ratio"], 3),
        "cpu_share": next(iter(found["cpu_share"].values())),
        "frozen_r": found["frozen_r"],
    }


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [" | ".join(COLUMNS.values()), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(f"{row[key]}" for key in COLUMNS) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> int:
    """Entry point; returns the exit code."""
    args = parse_args()
    rows: list[Row] = []
    failed: list[str] = []
    machine: Any = None
    for model in args.models.split(","):
        done = subprocess.run(command(model, args), stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            failed.append(model)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        machine = found["machine"]
        rows.append(row_of(found))
    print(markdown(rows))
    print(json.dumps({"benchmark": "models", "machine": machine, "rows": rows, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
