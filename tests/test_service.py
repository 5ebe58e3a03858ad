"""The example service on loopback: batches, refusals, shutdown, and load beyond its capacity."""

from __future__ import annotations

import asyncio
import io
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from uvicorn.server import ServerState

from atm_export.prove.golden_vectors import scene
from atm_export.runtime import load
from tests.run_folders import real_run, tiny_run
from tests.runs import ended
from tests.shared_data import sample_images, shared

APP = Path(__file__).resolve().parents[1] / "tools" / "service" / "app.py"
ROOM = 12
send = partial(httpx.post, timeout=60)
ask_for: Any = partial(httpx.get, timeout=60)


@pytest.fixture(scope="module")
def frozen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("runs") / "frozen", "frozen", merge="frozen")


def wait_until(holds: Callable[[], bool], what: str, story: Callable[[], str] = str) -> None:
    """Ask again until it holds; fails with `story` after two minutes."""
    until = time.monotonic() + 120
    while not holds():
        if time.monotonic() > until:
            pytest.fail(f"waited in vain: {what}\n{story()}")
        time.sleep(0.02)


@contextmanager
def serving(run: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The service's address and its process, ended at the end. What it printed is shown where it
    does not start, and, as all output, where a test fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(APP), "--run", str(run), "--port", str(port), *options]
    address = f"http://127.0.0.1:{port}"
    with TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

        def story() -> str:
            log.seek(0)
            return log.read().decode(errors="replace")

        def answers() -> bool:
            if process.poll() is not None:
                pytest.fail(f"the service ended with {process.returncode}\n{story()}")
            try:
                return httpx.get(f"{address}/health", timeout=10).status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_until(answers, "the service answers", story)
            yield address, process
        finally:
            process.terminate()
            process.wait(timeout=40)
            print(story())


def jpeg(seed: int, size: tuple[int, int] = (90, 70)) -> bytes:
    buffer = io.BytesIO()
    scene(size, seed).save(buffer, "JPEG")
    return buffer.getvalue()


def right(answer: httpx.Response, expected: np.ndarray) -> bool:
    """Whether labels and probabilities are those of the single-threaded session."""
    labels = answer.json()["labels"]
    return all(abs(expected[k["index"]] - k["probability"]) < 1e-4 for k in labels)


def probabilities(run: Path, pictures: list[bytes]) -> np.ndarray:
    session = load(run, threads=1)
    rows = np.zeros((len(pictures), session.predict(pictures[0]).shape[1]))
    for row, labels in zip(rows, session.classify(pictures, 10**6, batch_size=1), strict=True):
        for label in labels:
            row[label.index] = label.probability
    return rows


async def flood(
    address: str, pictures: list[bytes], expected: np.ndarray, rate: float, seconds: float
) -> Counter[str]:
    """Open-loop load: `rate` requests a second whatever the answers; counts of what came back."""
    counts: Counter[str] = Counter()

    async def ask(client: httpx.AsyncClient, k: int) -> None:
        try:
            answer = await client.post(f"{address}/classify", content=pictures[k])
        except httpx.HTTPError as error:
            counts[type(error).__name__] += 1
            return
        wrong = answer.status_code == 200 and not right(answer, expected[k])
        counts["wrong" if wrong else str(answer.status_code)] += 1

    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client, asyncio.TaskGroup() as tasks:
        start = time.perf_counter()
        for i in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + i / rate - time.perf_counter()))
            tasks.create_task(ask(client, i % len(pictures)))
    return counts


async def capacity(address: str, pictures: list[bytes], requests: int, clients: int) -> float:
    """Closed-loop: answers a second with `clients` that ask again as soon as they are answered."""

    async def ask(client: httpx.AsyncClient) -> None:
        for i in range(requests // clients):
            answer = await client.post(f"{address}/classify", content=pictures[i % len(pictures)])
            assert answer.status_code == 200

    async with httpx.AsyncClient(timeout=60) as client:
        start = time.perf_counter()
        await asyncio.gather(*(ask(client) for _ in range(clients)))
        return requests / (time.perf_counter() - start)


def counts_of(address: str) -> dict[str, Any]:
    return dict(ask_for(f"{address}/health").json()["counts"])


def test_batches_refusals_and_shutdown(frozen_folder: Path) -> None:
    pictures = [jpeg(seed) for seed in range(6)]
    expected = probabilities(frozen_folder, pictures)
    with serving(frozen_folder, "--room", str(ROOM), "--threads", "1") as (address, process):
        refuse(address)
        counts = asyncio.run(flood(address, pictures, expected, rate=400, seconds=1.5))
        assert set(counts) <= {"200", "503"} and counts["200"] > 20, counts
        seen = counts_of(address)
        assert seen["largest_batch"] > 1 and seen["peak"] <= ROOM and not seen["under_way"]
        fill_the_queue(address, pictures[0])
        for picture, row in zip(pictures, expected, strict=True):  # it has recovered
            answer = send(f"{address}/classify", content=picture)
            assert answer.status_code == 200 and right(answer, row)
        assert answered_in_shutdown(address, process, pictures[0]) == 200


def refuse(address: str) -> None:
    """Malformed and oversized images, and what is no request."""
    post = f"{address}/classify"
    assert send(post, content=b"junk").status_code == 422
    assert send(post, content=b"").status_code == 422
    assert send(post, content=jpeg(0)[:-900]).status_code == 422
    assert send(post, content=b"x" * (11 * 2**20)).status_code == 413
    for size in ((9000, 9000), (12000, 12000), (16000, 1), (1, 65000)):
        buffer = io.BytesIO()
        Image.new("1", size).save(buffer, "PNG")
        assert send(post, content=buffer.getvalue()).status_code == 413, size
    assert send(post, content=b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n").status_code == 422
    buffer = io.BytesIO()
    Image.new("F", (90, 70)).save(buffer, "TIFF")
    answer = send(post, content=buffer.getvalue())
    assert answer.status_code == 422 and "floating-point" in answer.json()["detail"]
    assert ask_for(post).status_code == 405
    assert ask_for(f"{address}/other").status_code == 404


@contextmanager
def half_sent(address: str, picture: bytes) -> Iterator[socket.socket]:
    """A request under way, of which the first 100 bytes have arrived."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as link:
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n\r\n"
        link.sendall(head.encode() + picture[:100])
        yield link


def fill_the_queue(address: str, picture: bytes) -> None:
    """With all room taken further requests are refused; those under way are answered."""
    with ExitStack() as stack:
        links = [stack.enter_context(half_sent(address, picture)) for _ in range(ROOM)]
        wait_until(lambda: counts_of(address)["under_way"] == ROOM, "all room is taken")
        refused = send(f"{address}/classify", content=picture)
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        for link in links:
            link.sendall(picture[100:])
        assert [link.recv(4096).split()[1] for link in links] == [b"200"] * ROOM


def answered_in_shutdown(address: str, process: subprocess.Popen[bytes], picture: bytes) -> int:
    """The status of a request whose second half is sent after SIGTERM."""

    def closed() -> bool:
        try:
            ask_for(f"{address}/health", timeout=5)
        except httpx.TransportError:
            return True
        return False

    with half_sent(address, picture) as link:
        wait_until(lambda: counts_of(address)["under_way"] == 1, "the request has arrived")
        process.send_signal(signal.SIGTERM)
        wait_until(closed, "nothing new is taken")
        link.sendall(picture[100:])
        status = int(link.recv(4096).split()[1])
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    return status


def test_an_adaptive_run_is_not_batched_and_slow_bodies_end(uint8_folder: Path) -> None:
    with serving(uint8_folder, "--patience", "0.5") as (address, _):
        with half_sent(address, jpeg(0)) as link:
            assert link.recv(4096).split()[1] == b"408"
        drop_what_asks_nothing(address)
        assert counts_of(address)["under_way"] == 0
        facts = ask_for(f"{address}/health").json()
        assert facts["policy"] == "adaptive" and facts["batch"] == 1


def drop_what_asks_nothing(address: str) -> None:
    """Connections without a request end: silent, half a request line, half the headers."""
    host, port = address.removeprefix("http://").split(":")
    for begun in (b"", b"POST /clas", b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Le"):
        with socket.create_connection((host, int(port)), timeout=60) as link:
            link.sendall(begun)
            assert dropped(link), begun
    with socket.create_connection((host, int(port)), timeout=60) as link:
        link.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")  # the second is half sent
        assert link.recv(4096).split()[1] == b"200"
        assert dropped(link)


def dropped(link: socket.socket) -> bool:
    """Whether the other side ended the connection; it may have answered before."""
    try:
        while link.recv(4096):
            pass
    except ConnectionResetError:
        return True
    return True


class Clock:
    """What an event loop does of time: whom it would call, when it gets there."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Any]] = []

    def call_later(self, seconds: float, work: Any) -> Any:
        entry = (seconds, work)
        self.waiting.append(entry)
        return SimpleNamespace(cancel=lambda: self.waiting.remove(entry))

    def create_task(self, work: Any, **_: Any) -> Any:
        work.close()
        return MagicMock()


def test_the_clock_runs_until_headers_are_there_and_trickling_does_not_set_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(APP.parent))
    patient = import_module("patience").patient
    clock, transport = Clock(), MagicMock(spec=asyncio.Transport)
    transport.is_closing.return_value = False
    config = uvicorn.Config(lambda *_: None, http=patient(7), log_level="critical")
    link = patient(7)(config, ServerState(), {}, _loop=clock)
    link.connection_made(transport)
    begun = list(clock.waiting)
    assert [seconds for seconds, _ in begun] == [7]
    for byte in b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r":
        link.data_received(bytes([byte]))
        assert clock.waiting == begun
    link.data_received(b"\n")
    assert not clock.waiting  # the request is under way, and its body has a limit of its own
    link.data_received(b"h")
    assert not clock.waiting
    link.cycle.response_complete = True
    link.on_response_complete()
    assert [seconds for seconds, _ in clock.waiting] == [config.timeout_keep_alive]
    link.data_received(b"i")  # late bytes of a request that was answered
    assert [seconds for seconds, _ in clock.waiting] == [7]
    clock.waiting[0][1]()
    transport.abort.assert_called_once()
    link.connection_lost(None)
    assert not clock.waiting


def test_patience_is_what_was_asked_for(
    uint8_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(APP.parent))
    app = import_module("app")
    seen = {}
    monkeypatch.setattr(app, "make_app", lambda session, settings: seen.update(made=settings))
    monkeypatch.setattr(app, "patient", lambda seconds: seen.update(headers=seconds))
    monkeypatch.setattr(app.uvicorn, "run", lambda *_, **__: None)
    arguments = ["app.py", "--run", str(uint8_folder), "--patience", "0.25"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert app.main() == 0
    assert seen["made"].patience == seen["headers"] == 0.25


def test_no_more_pictures_are_decoded_at_once_than_there_are_decoders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as may begin meet each other; nobody else has begun by then."""
    monkeypatch.syspath_prepend(str(APP.parent))
    app, together, begun = import_module("app"), threading.Barrier(3), []

    def prepare(data: bytes) -> list[np.ndarray]:
        begun.append(data)
        together.wait(60)  # the two that decode, and this test
        together.wait(60)
        return [np.zeros(1, np.float32)]

    session = MagicMock(policy="frozen", prepare=prepare, run=lambda images: {"logits": images})
    session.answers.require_ranks.return_value = "logits"
    session.ranked.return_value = [[]]
    made = app.make_app(session, app.Settings(decoders=2))

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(made)
        async with (
            made.router.lifespan_context(made),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            asked = [asyncio.create_task(client.post("/classify", content=b"x")) for _ in range(6)]
            for round_ in range(1, 4):
                await asyncio.to_thread(together.wait, 60)
                assert len(begun) == 2 * round_
                await asyncio.to_thread(together.wait, 60)
            return [(await task).status_code for task in asked]

    assert asyncio.run(ask()) == [200] * 6


def test_a_run_that_is_not_to_be_trusted_is_not_served(tmp_path: Path) -> None:
    command = [sys.executable, str(APP), "--run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    ended(done, 10)
    assert "no run folder" in done.stderr


@pytest.mark.slow
def test_30_seconds_at_twice_its_capacity(tmp_path: Path, all_cores: None) -> None:
    weights = str(shared("data", "weights", "deit_tiny_patch16_224.safetensors"))
    run = real_run(tmp_path / "run", model="deit_t", weights=weights, merge="per-image")
    pictures = [path.read_bytes() for path in sample_images(step=50)]
    expected = probabilities(run, pictures)
    with serving(run, "--room", "32") as (address, _):
        able = asyncio.run(capacity(address, pictures, 240, clients=16))
        counts = asyncio.run(flood(address, pictures, expected, rate=2 * able, seconds=30))
        print(f"capacity {able:.0f}/s; at twice that for 30 s: {dict(counts)}")
        assert set(counts) <= {"200", "503"} and counts["200"] > 0
        assert counts_of(address)["peak"] <= 32
        for picture, row in zip(pictures, expected, strict=True):  # it has recovered
            answer = send(f"{address}/classify", content=picture)
            assert answer.status_code == 200 and right(answer, row)
