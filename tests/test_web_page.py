"""The page of `atm-export web` in headless Chromium: Python's answers, nothing from elsewhere."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atm_export.runtime import load
from atm_export.web.site import write_site
from tests.devtools import Page, steered
from tests.run_folders import real_run
from tests.webs import npm_package

ENDED = "['ready', 'failed'].includes(document.body.dataset.state)"
TOLD = """({
  names: [...document.querySelectorAll("#answer .name")].map(each => each.textContent),
  shares: [...document.querySelectorAll("#answer meter")].map(each => each.value),
  tokens: [...document.querySelectorAll("#tokens div")].map(each => Number(each.textContent)),
  caption: document.getElementById("regions-caption").textContent,
  point: document.getElementById("point-name").textContent,
  status: document.getElementById("status").textContent,
  state: document.body.dataset.state,
})"""


class Quiet(SimpleHTTPRequestHandler):
    """Plain static files."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder under an address of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with trace outputs, frozen."""
    out = tmp_path_factory.mktemp("runs") / "frozen"
    return real_run(out, model="demo", merge="frozen", trace=True)


@pytest.fixture(scope="module")
def site(finished_run: Path, frozen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs; tests must not change it."""
    out = tmp_path_factory.mktemp("sites") / "site"
    return write_site([finished_run, frozen], out, onnxruntime_web=npm_package()).folder


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with steered(tmp_path) as steered_page:
        yield steered_page


def ready(page: Page, url: str) -> dict[str, Any]:
    page.open(f"{url}index.html")
    page.wait(ENDED)
    return dict(page.evaluate(TOLD))


def chosen(page: Page, file: Path) -> dict[str, Any]:
    """What the page tells once it has answered a file."""
    page.choose_file("#file", file)
    page.wait(f"document.getElementById('file').value === '' && {ENDED}")
    return dict(page.evaluate(TOLD))


def same_as_python(told: dict[str, Any], run: Path, file: Path, within: float = 1e-3) -> None:
    session = load(run)
    labels = session.classify(file, 5)[0]
    assert told["state"] == "ready" and told["names"][0] == labels[0].name
    shares = [label.probability for label in labels]
    assert np.allclose(told["shares"], shares, atol=within)
    outputs = session.run(session.prepare([file]))
    assert told["tokens"] == outputs["tokens_per_block"].tolist()
    tokens = len(set(outputs["patch_to_token"][0].tolist()) - {-1})
    assert told["caption"] == f"196 patches in {tokens} tokens"


def test_a_picture_in_and_pythons_answer_out(
    site: Path, finished_run: Path, frozen: Path, digits: Path, page: Page, tmp_path: Path
) -> None:
    page.look(1200, 900, dark=False)
    with served(site) as url:
        assert ready(page, url)["state"] == "ready", "the run's own first picture is answered"
        files = sorted(digits.rglob("*.png"))[::13]
        for file in files:
            same_as_python(chosen(page, file), finished_run, file)
        page.evaluate(
            "(slider => { slider.value = 1; slider.dispatchEvent(new Event('input')); })"
            "(document.getElementById('slider'))"
        )
        page.wait(ENDED)
        told = page.evaluate(TOLD)
        assert told["point"].startswith("2 of 2: ATM")
        same_as_python(told, frozen, files[-1])
        (tmp_path / "none.png").write_bytes(b"none")
        told = chosen(page, tmp_path / "none.png")
        assert (
            told["state"] == "failed" and "no picture that the browser can read" in told["status"]
        )
        turned = tmp_path / "turned.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees, which Python does not undo
        with Image.open(files[0]) as image:
            wide = image.convert("RGB").resize((90, 60))
            wide.save(turned, quality=95, exif=exif)
        same_as_python(chosen(page, turned), frozen, turned, within=0.05)
        page.evaluate("document.getElementById('prove').click()")
        page.wait("document.getElementById('proof').className")
        proof = page.evaluate("document.getElementById('proof').textContent")
        assert "comparisons with PyTorch's answers hold" in proof
        assert page.requests and all(each.startswith(url) for each in page.requests)
        assert {each.removeprefix(url).split("/")[0] for each in page.requests} >= {"ort", "runs"}
    assert not page.complaints


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_a_phone_and_a_desktop_by_day_and_by_night(
    site: Path, page: Page, width: int
) -> None:
    means = {}
    with served(site) as url:
        page.look(width, 900, dark=False)
        ready(page, url)
        for dark in (False, True):
            page.look(width, 900, dark=dark)
            page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 300)))")
            scroll, beyond = page.evaluate(
                "[document.documentElement.scrollWidth, [...document.querySelectorAll('body *')]"
                ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).length]"
            )
            assert scroll <= width and not beyond
            picture = page.picture()
            assert picture.shape[1] == width and picture.std() > 20
            assert (picture[:, 2] == picture[0, 2]).all(), "the margin has the page's colour"
            means[dark] = picture[:, 2].mean()
        sizes = page.evaluate(
            "['picture', 'regions'].map(id => document.getElementById(id).clientWidth)"
        )
        assert min(sizes) > width * 0.35
    assert means[False] > 200 > 60 > means[True]
    assert not page.complaints


def test_a_changed_model_and_a_missing_file_are_said(
    site: Path, page: Page, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(site, tmp_path / "site"))
    model = broken / "runs" / "1" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with served(broken) as url:
        told = ready(page, url)
        assert told["state"] == "failed" and not told["names"]
        assert "model.onnx was changed after the export" in told["status"]
        model.unlink()
        assert "model.onnx cannot be fetched (status 404)" in ready(page, url)["status"]
        (broken / "site.json").unlink()
        assert "site.json is missing" in ready(page, url)["status"]


def test_a_run_without_trace_shows_its_answer(
    demo_folder: Path, digits: Path, page: Page, tmp_path: Path
) -> None:
    site = write_site([demo_folder], tmp_path / "site", onnxruntime_web=npm_package())
    file = min(digits.rglob("*.png"))
    with served(site.folder) as url:
        ready(page, url)
        told = chosen(page, file)
        shown = page.evaluate(
            "['point', 'regions', 'tokens-section'].map(id => document.getElementById(id).hidden)"
        )
    assert told["names"][0] == load(demo_folder).classify(file, 1)[0][0].name
    assert shown == [True, True, True] and "--trace" in told["caption"]
    assert json.loads((site.folder / "site.json").read_text())["model"] == "demo"
    assert not page.complaints
