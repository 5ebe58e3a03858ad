"""predictions-RUNNER.csv: one line an image."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from atm_export.measure.data.samples import Samples

COLUMNS = ("image", "right", "top1", "top5", "unmerged_top1", "gflops")


def predictions_csv(samples: Samples, entries: Mapping[int, Mapping[str, Any]]) -> str:
    """What is right and what was answered for each counted image, by the unmerged model too.

    Names are written by `imagefiles.printable`.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for k in sorted(entries):
        row = entries[k]
        plain = row.get("plain_top5") or [[""]] * len(row["images"])
        for i, five, other, gmacs in zip(
            row["images"], row.get("top5", []), plain, row.get("gmacs", []), strict=True
        ):
            right = " ".join(map(str, samples.right[i]))
            best = " ".join(map(str, five))
            writer.writerow([samples.name(i), right, five[0], best, other[0], f"{gmacs:.6f}"])
    return text.getvalue()
