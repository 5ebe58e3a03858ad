"""predictions-RUNNER.csv: one line an image."""

from __future__ import annotations

import csv
import io

from atm_export.measure.accuracy.batches import readings
from atm_export.measure.accuracy.journal import Journal
from atm_export.measure.data.samples import Samples
from atm_export.tasks.judge import Judge


def predictions_csv(samples: Samples, judge: Judge, journal: Journal) -> str:
    """What the judge says of each counted image, and what it cost.

    Names are written by `imagefiles.printable`.
    """
    found = readings(judge, journal)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if found is None:
        return ""
    right = [samples.right[i] for i in found.images]
    columns, rows = judge.table(found.ours, found.plain, right)
    writer.writerow(["image", *columns, "gflops"])
    for i, cells, gmacs in zip(found.images, rows, found.gmacs, strict=True):
        writer.writerow([samples.name(i), *cells, f"{gmacs:.6f}"])
    return text.getvalue()
