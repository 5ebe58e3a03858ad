"""What a task's judge says, multiply-adds and tokens over a data set."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atm_export.errors import DataError
from atm_export.measure.accuracy.journal import Journal
from atm_export.measure.accuracy.resume import keep_what_holds
from atm_export.measure.accuracy.runners import Engine, gmacs_from_tokens
from atm_export.measure.data.decode import Decoded, decoded
from atm_export.measure.data.samples import Samples
from atm_export.model.flops import unmerged_gmacs
from atm_export.prove.intervals import with_intervals
from atm_export.subject import Subject
from atm_export.tasks import judge_of
from atm_export.tasks.judge import Judge

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """How to evaluate. batch: images that share r, as the adaptive policy runs them.
    max_unreadable: images that may fail to decode; unmerged: run the unmerged model too."""

    runner: str = "onnxruntime"
    batch: int = 32
    workers: int = 2
    max_unreadable: int = 10
    limit: int | None = None
    unmerged: bool = True


def count_batches(
    subject: Subject,
    engine: Engine,
    samples: Samples,
    options: Options,
    journal: Journal,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Run every batch that the journal lacks; returns the rate of this session: images/s, images/s
    while a model ran, and the share of time that it did (1: decoding costs nothing).

    Batches are fixed runs of the data set's order, so that the images that share r are the same
    however often an evaluation was interrupted. Raises DataError above the limit of unreadable
    images.
    """
    total = min(len(samples), options.limit or len(samples))
    batches = _chunks(total, options.batch)
    keep_what_holds(journal, samples, batches, options.unmerged, _judge(subject))
    _check_unreadable(journal, options, total)
    todo = [k for k in range(len(batches)) if k not in journal.entries]
    done = before = sum(len(batches[k]) for k in journal.entries)
    progress(done, total)
    busy, start = 0.0, time.perf_counter()
    chosen = [batches[k] for k in todo]
    for k, batch in zip(todo, _decoded(subject, samples, chosen, options), strict=True):
        begin = time.perf_counter()
        entry = _count(subject, engine, samples, batch, options)
        busy += time.perf_counter() - begin
        journal.add({"batch": k, **entry})
        _check_unreadable(journal, options, total)
        done += len(batches[k])
        progress(done, total)
    return _rate(done - before, time.perf_counter() - start, busy)


def _rate(count: int, wall: float, busy: float) -> dict[str, Any]:
    """Of `count` images in `wall` seconds, `busy` of them in the model."""
    if not count:
        return {"images": 0}
    return {
        "images": count,
        "images_per_s": round(count / wall, 3),
        "in_model_images_per_s": round(count / busy, 3),
        "share_in_model": round(busy / wall, 4),
    }


def _chunks(total: int, size: int) -> list[range]:
    return [range(i, min(i + size, total)) for i in range(0, total, size)]


def _decoded(
    subject: Subject, samples: Samples, chosen: Sequence[range], options: Options
) -> Iterator[Decoded]:
    yield from decoded(samples.reader, subject.model.preprocessing, chosen, options.workers)


def _count(
    subject: Subject, engine: Engine, samples: Samples, batch: Decoded, options: Options
) -> dict[str, Any]:
    bad = [[samples.name(i), reason] for i, reason in batch.unreadable]
    asked = sorted([*batch.kept, *(i for i, _ in batch.unreadable)])
    digest = samples.digest(asked, batch.contents)
    if not batch.kept:
        return {"samples": digest, "images": [], "unreadable": bad}
    output = engine.forward(batch.pixels)
    gmacs = gmacs_from_tokens(subject, subject.plan, output.tokens_out)
    judge = _judge(subject)
    ours = judge.reading(output.rows)
    plain = judge.reading(_plain(subject, batch)) if options.unmerged else None
    ours, plain = judge.beside(ours, plain)
    entry: dict[str, Any] = {
        "samples": digest,
        "images": list(batch.kept),
        "answers": judge.packed(ours),
        "gmacs": gmacs.tolist(),
        "tokens": output.tokens_out.T.tolist(),
        "unreadable": bad,
    }
    if plain is not None:
        entry["plain"] = judge.packed(plain)
    return entry


def _plain(subject: Subject, batch: Decoded) -> NDArray[Any]:
    """The judged output of the unmerged model."""
    backbone = subject.model.backbone
    with torch.inference_mode():
        found = backbone.named(backbone.plain(subject.tensor(batch.pixels)))
    return found[backbone.judged].numpy()


def _judge(subject: Subject) -> Judge:
    return judge_of(subject.model.backbone.task, "evaluate")


@dataclass(frozen=True)
class Readings:
    """The images of a journal by number, and what the judge kept of each: of the merged model and,
    where it was run, of the unmerged one."""

    images: list[int]
    ours: NDArray[Any]
    plain: NDArray[Any] | None
    gmacs: list[float]


def readings(judge: Judge, journal: Journal) -> Readings | None:
    """What a journal holds, in order; None where no image was readable."""
    rows = [journal.entries[k] for k in sorted(journal.entries) if journal.entries[k]["images"]]
    if not rows:
        return None
    plain = None
    if all(row.get("plain") for row in rows):
        plain = np.concatenate([judge.unpacked(row["plain"]) for row in rows])
    return Readings(
        [i for row in rows for i in row["images"]],
        np.concatenate([judge.unpacked(row["answers"]) for row in rows]),
        plain,
        [g for row in rows for g in row["gmacs"]],
    )


def _check_unreadable(journal: Journal, options: Options, total: int) -> None:
    bad = [entry for row in journal.entries.values() for entry in row["unreadable"]]
    if len(bad) > min(options.max_unreadable, total - 1):
        name, reason = bad[0]
        raise DataError(
            f"{len(bad)} images cannot be read, the first: {name} ({reason}); "
            f"--max-unreadable allows {options.max_unreadable}"
        )


def summarize(
    subject: Subject,
    engine: Engine,
    samples: Samples,
    options: Options,
    journal: Journal,
    material: Any = None,
) -> dict[str, Any]:
    """The evaluation in numbers, from the counted batches alone. material: what the user gave to
    judge by (class vectors)."""
    rows = [journal.entries[k] for k in sorted(journal.entries)]
    judge = _judge(subject)
    found = readings(judge, journal)
    tokens = np.array([t for row in rows for t in row.get("tokens", [])], dtype=float)
    if found is None:
        raise DataError(f"none of {len(samples)} images can be read")
    right = [samples.right[i] for i in found.images]
    facts: dict[str, Any] = {
        "task": subject.model.backbone.task,
        "runner": options.runner,
        "device": engine.device,
        "batch": options.batch,
        "data": {
            "labels": samples.source,
            "images": len(found.images),
            "sha256": hashlib.sha256("".join(row["samples"] for row in rows).encode()).hexdigest(),
            "other_files": dict(samples.others),
        },
        "unreadable": [
            {"image": name, "reason": reason} for row in rows for name, reason in row["unreadable"]
        ],
        "gflops": {
            **_spread(np.array(found.gmacs)),
            "unmerged": unmerged_gmacs(subject.model.backbone),
        },
        "tokens": {
            "mean_after_block": [round(float(n), 4) for n in tokens.mean(axis=0)],
            "source": engine.tokens_from,
        },
    }
    plain = found.plain if options.unmerged else None
    return facts | with_intervals(judge.evaluation(found.ours, plain, right, material))


def _spread(values: NDArray[np.float64]) -> dict[str, Any]:
    """Mean and distribution over images, in units of 1e9 multiply-adds."""
    counts, edges = np.histogram(values, bins=12)
    quantiles = np.quantile(values, [0.0, 0.1, 0.5, 0.9, 1.0])
    names = ("min", "p10", "median", "p90", "max")
    return {
        "mean": float(values.mean()),
        **{name: round(float(q), 6) for name, q in zip(names, quantiles, strict=True)},
        "histogram": {
            "edges": [round(float(edge), 6) for edge in edges],
            "counts": counts.tolist(),
        },
    }
