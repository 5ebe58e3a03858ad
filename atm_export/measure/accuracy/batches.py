"""What a task's judge says, multiply-adds and tokens over a data set."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from atm_export.errors import DataError
from atm_export.inputs import Pixels
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


class Counter(Protocol):
    """What counts batches. device, tokens_from: as an `Engine` has them; busy: seconds that a model
    ran so far."""

    @property
    def device(self) -> str: ...

    @property
    def tokens_from(self) -> str: ...

    @property
    def busy(self) -> float: ...

    def entries(
        self, samples: Samples, batches: Mapping[int, range], options: Options
    ) -> Generator[tuple[int, dict[str, Any]]]:
        """What the journal keeps of each batch, by its number, in any order."""
        ...


class Counts:
    """Counts batches in this process, in order."""

    def __init__(self, subject: Subject, engine: Engine) -> None:
        self.subject, self.engine = subject, engine
        self.device, self.tokens_from = engine.device, engine.tokens_from
        self.busy = 0.0

    def entries(
        self, samples: Samples, batches: Mapping[int, range], options: Options
    ) -> Generator[tuple[int, dict[str, Any]]]:
        how, chosen = self.subject.model.preprocessing, list(batches.values())
        found = decoded(samples.reader, how, chosen, options.workers)
        for k, batch in zip(batches, found, strict=True):
            begin = time.perf_counter()
            entry = _count(self.subject, self.engine, samples, batch, options)
            self.busy += time.perf_counter() - begin
            yield k, entry


def count_batches(
    judge: Judge,
    counter: Counter,
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
    keep_what_holds(journal, samples, batches, options.unmerged, judge)
    _check_unreadable(journal, options, total)
    todo = {k: batch for k, batch in enumerate(batches) if k not in journal.entries}
    done = before = sum(len(batches[k]) for k in journal.entries)
    progress(done, total)
    start = time.perf_counter()
    with closing(counter.entries(samples, todo, options)) as found:
        for k, entry in found:
            journal.add({"batch": k, **entry})
            _check_unreadable(journal, options, total)
            done += len(batches[k])
            progress(done, total)
    busy = counter.busy
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


def _count(
    subject: Subject, engine: Engine, samples: Samples, batch: Decoded, options: Options
) -> dict[str, Any]:
    answers = answers_of(subject, engine, batch.pixels, options.unmerged) if batch.kept else {}
    return entry_of(samples, batch, answers)


def entry_of(samples: Samples, batch: Decoded, answers: Mapping[str, Any]) -> dict[str, Any]:
    """What the journal keeps of a batch, whose pixels need no longer be there. answers: of
    `answers_of`; none where no image is readable."""
    asked = sorted([*batch.kept, *(i for i, _ in batch.unreadable)])
    return {
        "samples": samples.digest(asked, batch.contents),
        "images": list(batch.kept),
        "unreadable": [[samples.name(i), reason] for i, reason in batch.unreadable],
        **answers,
    }


def answers_of(
    subject: Subject, engine: Engine, pixels: Pixels, unmerged: bool
) -> dict[str, list[Any]]:
    """What the judge keeps of pixels [k, H, W, C], their multiply-adds and tokens; `unmerged`: the
    unmerged model's answers too."""
    output, judge = engine.forward(pixels), _judge(subject)
    gmacs = gmacs_from_tokens(subject, subject.plan, output.tokens_out)
    plain = judge.reading(_plain(subject, pixels)) if unmerged else None
    ours, plain = judge.beside(judge.reading(output.rows), plain)
    found: dict[str, list[Any]] = {
        "answers": judge.packed(ours),
        "gmacs": gmacs.tolist(),
        "tokens": output.tokens_out.T.tolist(),
    }
    if plain is not None:
        found["plain"] = judge.packed(plain)
    return found


def _plain(subject: Subject, pixels: Pixels) -> NDArray[Any]:
    """The judged output of the unmerged model."""
    backbone = subject.model.backbone
    with torch.inference_mode():
        found = backbone.named(backbone.plain(subject.tensor(pixels)))
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
    counter: Counter,
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
        "device": counter.device,
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
            "source": counter.tokens_from,
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
