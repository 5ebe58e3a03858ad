"""The one door to a Ray cluster, for what runs in parts that may run again elsewhere.

Nodes share nothing but the cluster: what tasks need goes through Ray's object store, and a task on
a node that dies runs again on another.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar
from uuid import uuid4

from atm_export.errors import AtmExportError, ConfigError, MissingDependencyError

RETRIES = -1  # of a task: as often as nodes die
KNOCK_SECONDS = 20  # in which a cluster answers
CANCEL_SECONDS = 5  # in which a task ends that is interrupted
Number = TypeVar("Number", bound=Hashable)


def joined_cluster(address: str) -> Any:
    """Ray, joined to the cluster at `address` (auto: the local one).

    MissingDependencyError names the extra, AtmExportError says why there is no cluster.
    """
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of tasks that are cancelled anyway
    with _signals_kept():
        ray = _load()
        if not ray.is_initialized():
            try:
                _reach(address)
                ray.init(address=address, logging_level="ERROR", log_to_driver=False)
            except (OSError, RuntimeError, ValueError) as error:
                line = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise AtmExportError(f"--ray {address}: no cluster there ({line})") from error
    return ray


def width_of(ray: Any, cpus: int, gpus: int = 0) -> int:
    """How many tasks of `cpus` cores and `gpus` GPUs the cluster has room for, one at least."""
    there = ray.cluster_resources()
    cores = int(there.get("CPU", 1)) // cpus
    return max(1, min(cores, int(there.get("GPU", 0)) // gpus) if gpus else cores)


def failure(error: Exception, what: str) -> AtmExportError:
    """Why `what` failed for good: the error of ours that its node met, or the node's own words."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, AtmExportError):
        return cause
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return AtmExportError(f"{what} failed on the Ray cluster: {line}")


@dataclass(frozen=True)
class Shared:
    """Values that lie in the object store, by name. key: of what is made of them."""

    key: str
    refs: Mapping[str, Any]

    def kept(self, make: Callable[[dict[str, Any]], Any]) -> Any:
        """What `make` makes of the values, once in a process of the cluster."""
        if self.key not in _kept:
            _kept.clear()
            ray = _load()
            _kept[self.key] = make({name: ray.get(ref) for name, ref in self.refs.items()})
        return _kept[self.key]


_kept: dict[str, Any] = {}


@dataclass(frozen=True)
class Reply:
    """What a task gives: a value, what ran the model, and seconds, `busy` of them in the model."""

    value: Any
    device: str
    busy: float
    seconds: float


class Tasks:
    """Calls of a function that gives a `Reply` on the cluster at `address`, each with `cpus` cores
    and `gpus` GPUs. device: what ran them so far.

    Raises what `joined_cluster` raises, ConfigError where no node has as many cores.
    """

    def __init__(
        self, address: str, function: Callable[..., Reply], cpus: int = 1, gpus: int = 0
    ) -> None:
        self.ray = joined_cluster(address)
        self.cpus, self.gpus, self.device = cpus, gpus, ""
        self._busy = self._seconds = 0.0
        most = max((int(node["Resources"].get("CPU", 0)) for node in self._nodes()), default=0)
        if 0 < most < cpus:
            raise ConfigError(
                f"--ray {address}: a task takes {cpus} cores, and no node has more than {most}; "
                "give fewer --threads"
            )
        how = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}
        self._remote = self.ray.remote(**how)(function)

    def _nodes(self) -> Iterator[Mapping[str, Any]]:
        return (node for node in self.ray.nodes() if node["Alive"])

    @property
    def share(self) -> float:
        """The share of the tasks' time in which a model ran."""
        return self._busy / self._seconds if self._seconds else 0.0

    def shared(self, values: Iterable[tuple[str, Any]]) -> Shared:
        """The values, put into the object store one after another."""
        return Shared(uuid4().hex, {name: self.ray.put(value) for name, value in values})

    def replies(
        self, calls: Iterable[tuple[Number, tuple[Any, ...]]]
    ) -> Generator[tuple[Number, Any]]:
        """The value of each call (a number and arguments), as they come. One call more is under way
        than the cluster has room for, and no further one is made before; closed, the rest is
        cancelled. Raises `failure`."""
        waiting: dict[Any, Number] = {}
        rest = iter(calls)
        try:
            while True:
                room = width_of(self.ray, self.cpus, self.gpus) + 1 - len(waiting)
                for number, arguments in islice(rest, max(0, room)):
                    waiting[self._remote.remote(*arguments)] = number
                if not waiting:
                    return
                ready, _ = self.ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(ready[0]), self._value(ready[0])
        finally:
            self._cancel(list(waiting))

    def _cancel(self, refs: list[Any]) -> None:
        """Interrupted, tasks put away what they hold; those that do not in time are ended."""
        if not refs:
            return
        for ref in refs:
            self.ray.cancel(ref)
        _, slow = self.ray.wait(refs, num_returns=len(refs), timeout=CANCEL_SECONDS)
        for ref in slow:
            self.ray.cancel(ref, force=True)

    def _value(self, ref: Any) -> Any:
        try:
            reply: Reply = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            raise failure(error, "a task") from error
        if self.device not in ("", reply.device):
            raise AtmExportError(
                f"the cluster's nodes differ: one runs the model on {self.device}, another on "
                f"{reply.device}; their numbers would too: give nodes of one kind"
            )
        self.device = reply.device
        self._busy += reply.busy
        self._seconds += reply.seconds
        return reply.value


def _reach(address: str) -> None:
    """OSError unless somebody listens at HOST:PORT or ray://HOST:PORT, where Ray would try for
    minutes. Other addresses (auto) are names of Ray's own."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal() and int(port) < 2**16:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def _load() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("--ray needs ray: pip install 'atm-export[ray]'") from error
    return ray


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray brings a handler of SIGTERM of its own, which would take the place of the command's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
