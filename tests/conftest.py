"""Set before anything is imported: no network. Tiny models run fastest on one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch

from atm_export.backends import threads

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def all_cores() -> Iterator[None]:
    """All cores for the models of real size."""
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_threads(request: pytest.FixtureRequest) -> None:
    """Commands set the threads of the whole process; results have other last bits then."""
    threads._threads = 0
    wanted = "all_cores" in request.fixturenames
    torch.set_num_threads((os.cpu_count() or 1) if wanted else 1)


@pytest.fixture(scope="session", autouse=True)
def shared_translations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One worker's translations are the others' too."""
    from atm_export.graph import translation_cache
    from tests.shelf import Shelf

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation_cache, "_translated", Shelf(shared / "translations"))
        yield


from tests.runs import digits, finished_run, run_copy  # noqa: E402, F401  (fixtures for all)


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo model, adaptive, without its ladder; tests must not change it."""
    from tests.run_folders import real_run

    return real_run(tmp_path_factory.mktemp("runs") / "demo_folder", model="demo")


@pytest.fixture(scope="session")
def uint8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model with uint8 input; tests must not change it."""
    from tests.run_folders import tiny_run

    return tiny_run(tmp_path_factory.mktemp("runs") / "uint8_folder", "uint8")


@pytest.fixture(scope="session")
def int8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo at 16 x 16 with its int8 graph; tests must not change it."""
    from tests.runs import run_command

    out = tmp_path_factory.mktemp("runs") / "int8_folder"
    small = ("demo", "--image-size", "16", "--no-benchmark")
    run_command(*small, "--backend", "onnxruntime", "--precision", "int8", "--out", str(out))
    return out
