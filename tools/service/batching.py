"""Dynamic batching with a bounded queue: single images in, answers out, full batches between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Full(Exception):
    """The queue is full; the caller answers 503."""


@dataclass
class Counts:
    """What happened since the start. peak: most requests that were ever under way at once."""

    answered: int = 0
    refused: int = 0
    batches: int = 0
    largest_batch: int = 0
    under_way: int = 0
    peak: int = 0


@dataclass
class Batcher:
    """Collects images for at most `wait` seconds or `most` images, and runs them as one batch.

    run: [n, ...] -> [n, classes], called in a thread, one batch at a time. room: requests that may
    be under way at once, waiting ones included; further ones are refused at once.
    """

    run: Callable[[Array], Array]
    most: int
    wait: float
    room: int
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Array, asyncio.Future[Array]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer; call it inside the event loop."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answer what is under way, then end."""
        while self.counts.under_way:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @contextlib.contextmanager
    def admitted(self) -> Any:
        """Room for one request, from its first byte to its answer; Full where there is none."""
        if self.counts.under_way >= self.room:
            self.counts.refused += 1
            raise Full
        self.counts.under_way += 1
        self.counts.peak = max(self.counts.peak, self.counts.under_way)
        try:
            yield
        finally:
            self.counts.under_way -= 1

    async def answer(self, image: Array) -> Array:
        """The row [classes] of one prepared image."""
        done: asyncio.Future[Array] = asyncio.get_running_loop().create_future()
        await self._queue.put((image, done))
        row = await done
        self.counts.answered += 1
        return row

    async def _work(self) -> None:
        while True:
            await self._run(await self._collect())

    async def _collect(self) -> list[tuple[Array, asyncio.Future[Array]]]:
        batch = [await self._queue.get()]
        until = asyncio.get_running_loop().time() + self.wait
        while len(batch) < self.most:
            left = until - asyncio.get_running_loop().time()
            if left <= 0 and self._queue.empty():
                break
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), max(left, 0.0005)))
            except TimeoutError:
                break
        return batch

    async def _run(self, batch: Sequence[tuple[Array, asyncio.Future[Array]]]) -> None:
        wanted = [(image, done) for image, done in batch if not done.cancelled()]
        if not wanted:
            return
        self.counts.batches += 1
        self.counts.largest_batch = max(self.counts.largest_batch, len(wanted))
        try:
            images = np.stack([image for image, _ in wanted])
            rows = await asyncio.to_thread(self.run, images)
        except Exception as error:  # every caller of this batch must hear of it
            for _, done in wanted:
                if not done.cancelled():
                    done.set_exception(error)
            return
        for (_, done), row in zip(wanted, rows, strict=True):
            if not done.cancelled():
                done.set_result(row)
