"""A session asked about a shard of pictures."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import NonFiniteError
from atm_export.inputs import InputSpec
from atm_export.measure.data.decode import Decoded, decoded
from atm_export.measure.data.readers import Reader
from atm_export.predict.ahead import ahead
from atm_export.predict.answering import Answering
from atm_export.predict.pictures import Pictures
from atm_export.predict.shards import Shard
from atm_export.predict.table import Rows
from atm_export.runtime.session import Session

Fed = tuple[Decoded, NDArray[Any]]  # a batch, and its pictures as the graph takes them
Names = Sequence[str] | Mapping[int, str]  # of pictures by number


class Asked:
    """Answers of a session, one shard at a time. busy: seconds that the model ran so far."""

    def __init__(self, session: Session, answering: Answering) -> None:
        self.session, self.answering = session, answering
        self.busy = 0.0

    def numbered(
        self, pictures: Pictures, shards: Mapping[int, Shard], workers: int
    ) -> Generator[tuple[int, Rows]]:
        """Rows of each shard by its number, in order; the rest is `shards`'."""
        found = self.shards(pictures.reader, pictures.names, list(shards.values()), workers)
        yield from zip(shards, found, strict=True)

    def shards(
        self, reader: Reader, names: Names, shards: Sequence[Shard], workers: int
    ) -> Iterator[Rows]:
        """Rows of each shard in order; `workers` processes (0: a thread) decode ahead of the model,
        across the ends of shards. Raises what a session's `run` raises."""
        batches = [batch for shard in shards for batch in shard]
        made = ahead(_fed(self.session.input, reader, batches, workers))
        try:
            for shard in shards:
                yield self._rows(islice(made, len(shard)), names)
        finally:
            made.close()

    def _rows(self, batches: Iterable[Fed], names: Names) -> Rows:
        kept: list[str] = []
        bad: list[tuple[str, str]] = []
        parts = [np.empty((0, self.answering.length), np.float32)]
        for batch, image in batches:
            kept += [names[i] for i in batch.kept]
            bad += [(names[i], reason) for i, reason in batch.unreadable]
            if batch.kept:
                parts.append(self._answers(image, names[batch.kept[0]]))
        return Rows(tuple(kept), self.answering.columns(np.concatenate(parts)), tuple(bad))

    def _answers(self, image: NDArray[Any], first: str) -> NDArray[np.float32]:
        begin = time.perf_counter()
        try:
            found = self.session.run(image)[self.answering.output]
        except NonFiniteError as error:
            raise NonFiniteError(f"in the batch that begins with {first}: {error}") from error
        finally:
            self.busy += time.perf_counter() - begin
        return np.asarray(found, dtype=np.float32)


def _fed(
    spec: InputSpec, reader: Reader, batches: Sequence[Sequence[int]], workers: int
) -> Generator[Fed]:
    for batch in decoded(reader, spec.preprocessing, batches, workers):
        yield batch, spec.feed(batch.pixels)
