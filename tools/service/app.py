"""An example HTTP service on a run folder: FastAPI, dynamic batching, a bounded queue.

    pip install "atm-export[service]"
    python tools/service/app.py --run build/deit_s --port 8000
    curl --data-binary @cat.jpeg http://127.0.0.1:8000/classify

Batches and answers: with --merge per-image or frozen (at export) an image's answer never depends on
its neighbours, so requests are batched. A run with the policy "adaptive" is served one image at a
time, unless --share-batches says that neighbours may matter.

Answers: 200 with labels; 408 for a body that does not arrive; 413 for too many bytes or pixels, or
a picture too long and thin; 422 for what is no image; 503 with Retry-After when the queue is full.
A connection whose headers do not arrive is dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import uvicorn
from batching import Batcher, Full
from fastapi import FastAPI, HTTPException, Request
from patience import patient

from atm_export.errors import AtmExportError, DataError, ImageSizeError
from atm_export.runtime import Session, load

log = logging.getLogger("atm_export.service")


@dataclass(frozen=True)
class Settings:
    """most_bytes: of one image file. decoders: images decoded at once (the largest picture takes
    600 MB). room: requests under way at once. wait: seconds that a batch waits for more images.
    patience: seconds that headers, and then a body, may take to arrive."""

    batch: int = 8
    wait: float = 0.003
    room: int = 64
    patience: float = 10.0
    most_bytes: int = 10 * 2**20
    decoders: int = 4
    top_k: int = 5
    share_batches: bool = False


def make_app(session: Session, settings: Settings) -> FastAPI:
    """The service on a loaded session."""
    batch = settings.batch
    if session.policy == "adaptive" and not settings.share_batches:
        log.warning("policy adaptive: one image at a time, so that no answer depends on another")
        batch = 1
    decoding = asyncio.Semaphore(settings.decoders)
    ranks = session.answers.require_ranks("/classify", session.run_folder.folder)
    batcher = Batcher(
        lambda images: session.run(images)[ranks], batch, settings.wait, settings.room
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    app = FastAPI(title="atm-export", lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        run = session.run_folder
        facts = {"model": run.manifest.model, "policy": session.policy, "batch": batch}
        return {**facts, "runs_on": session.about, "counts": asdict(batcher.counts)}

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        try:
            with batcher.admitted():
                data = await body_of(request, settings)
                async with decoding:
                    image = await asyncio.to_thread(prepared, session, data)
                row = await batcher.answer(image)
        except Full as error:
            headers = {"Retry-After": "1"}
            raise HTTPException(503, "busy: the queue is full", headers) from error
        labels = session.ranked(row[None], settings.top_k)[0]
        return {"labels": [asdict(label) for label in labels]}

    return app


async def body_of(request: Request, settings: Settings) -> bytes:
    """The body, read no further than it may be and no longer; HTTPException 413 or 408."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.patience):
            async for part in request.stream():
                size += len(part)
                if size > settings.most_bytes:
                    raise HTTPException(413, f"{settings.most_bytes} bytes at most")
                parts.append(part)
    except TimeoutError as error:
        raise HTTPException(408, "the body took too long to arrive") from error
    return b"".join(parts)


def prepared(session: Session, data: bytes) -> Any:
    """One image as the graph takes it; HTTPException 413 or 422."""
    try:
        return session.prepare(data)[0]
    except ImageSizeError as error:
        raise HTTPException(413, str(error)) from error
    except DataError as error:
        raise HTTPException(422, str(error)) from error


def main() -> int:
    """Serve until SIGTERM or Ctrl-C; requests under way are answered first."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--run", required=True, help="the folder that `atm-export MODEL` wrote")
    parser.add_argument("--backend", help="what runs it: onnxruntime (default), openvino")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=8, help="images in one batch at most")
    parser.add_argument("--room", type=int, default=64, help="requests under way at most")
    parser.add_argument(
        "--patience", type=float, default=10.0, help="seconds for a request to arrive"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--share-batches", action="store_true", help="batch an adaptive run too")
    options = parser.parse_args()
    try:
        session = load(options.run, backend=options.backend, threads=options.threads)
    except AtmExportError as error:
        print(f"service: {error}", file=sys.stderr)
        return error.exit_code
    settings = Settings(
        batch=options.batch,
        room=options.room,
        patience=options.patience,
        share_batches=options.share_batches,
    )
    print(f"{options.run}: {session.policy}, {session.about}", flush=True)
    uvicorn.run(
        make_app(session, settings),
        host=options.host,
        port=options.port,
        http=patient(settings.patience),
        log_level="warning",
        timeout_graceful_shutdown=30,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
