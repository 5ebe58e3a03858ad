"""The example service on loopback: batches, refusals, shutdown, and load beyond its capacity."""

from __future__ import annotations

import asyncio
import io
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from atm_export.runtime import load
from atm_export.validate.golden import scene
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
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    assert send(post, content=buffer.getvalue()).status_code == 413
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
        assert counts_of(address)["under_way"] == 0
        facts = ask_for(f"{address}/health").json()
        assert facts["policy"] == "adaptive" and facts["batch"] == 1


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
