"""The documentation as a site: it builds without a warning, no link is broken, nothing is fetched
from elsewhere, search works from a folder, and it tells of all options, functions and fields."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

from atm_export.cli import app
from tests.chromium import DARK, chromium
from tests.runs import ended, run_command

if missing := [name for name in ("mkdocs", "material", "mkdocstrings") if not find_spec(name)]:
    pytest.skip(f'{missing} not installed (pip install ".[docs]")', allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PROBE = """<script>addEventListener("load", () => setTimeout(() => parent.postMessage({
  wide: document.documentElement.scrollWidth, inner: innerWidth,
  page: getComputedStyle(document.body).backgroundColor}, "*"), 500))</script></body>"""
FRAME = """<!doctype html><script>onmessage = (e) => {{ document.title = JSON.stringify(e.data) }}
</script><iframe src="{}" style="border:0;width:390px;height:2000px"></iframe>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    config = DOCS / "mkdocs.yml"
    command = ["-m", "mkdocs", "build", "--strict", "-f", config, "--site-dir", folder]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env=quiet,
        cwd=folder.parent,
    )
    ended(done)
    assert "WARNING" not in done.stderr
    return folder


@cache
def hooks() -> ModuleType:
    spec = spec_from_file_location("docs_hooks", DOCS / "site" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """Where a page leads, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.add(given.get("id") or given.get("name") or "")
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        loaded = given.get("href" if tag == "link" else "src")
        if loaded and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(loaded)


def target(page: Path, link: str) -> Path:
    return (page.parent / unquote(urlsplit(link).path)).resolve() if urlsplit(link).path else page


def test_no_link_is_broken(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 30
    for path, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme:
                assert link.startswith("https://"), link
                continue
            there = target(path, link)
            assert there.is_file(), f"{path.relative_to(site)}: {link}"
            anchor = unquote(urlsplit(link).fragment)
            assert not anchor or anchor in pages[there].anchors, f"{path.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        for load in Page(path).loads:
            assert not urlsplit(load).scheme and not load.startswith("//"), f"{path.name}: {load}"
            assert path.name == "404.html" or target(path, load).is_file()
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert "@import" not in text
        loads = re.findall(r"url\(\s*[\"']?([^)\"']+)", text)
        assert all(load.startswith(("data:", "#")) for load in loads)


def test_search_works_from_a_folder_and_a_phone_by_night_shows_it_whole(
    site: Path, tmp_path: Path
) -> None:
    command = [*chromium(tmp_path), "--virtual-time-budget=20000", DARK]
    url = f"{(site / 'tutorial.html').as_uri()}?q=calibrate"
    done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True)
    found = re.findall(r'<a href="([^"]+)" class="md-search-result__link', ended(done))
    assert len(found) >= 3 and any("howto/images.html" in link for link in found)
    assert "CONSOLE" not in done.stderr, done.stderr
    for name in ("index.html", "howto/choose.html", "reference/cli.html", "reference/python.html"):
        page, probed = site / name, (site / name).with_suffix(".probed.html")
        probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), "utf-8")
        frame = tmp_path / "frame.html"
        frame.write_text(FRAME.format(probed.as_uri()), encoding="utf-8")
        done = subprocess.run(
            [*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True
        )
        probed.unlink()
        title = re.search(r"<title>(\{.*?\})</title>", ended(done))
        assert title is not None, done.stdout[:500]
        seen = json.loads(title[1].replace("&quot;", '"'))
        assert seen["wide"] <= seen["inner"] == 390, name
        assert max(map(int, re.findall(r"\d+", seen["page"])[:3])) < 80, "a dark page"


COMMANDS = [name for name in app if not name.startswith("-")]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_option_is_in_the_reference(command: str) -> None:
    text = hooks().commands()
    _, _, section = text.partition(f"\n## atm-export {command or 'MODEL'}\n")
    section = section.partition("\n## ")[0]
    shown = run_command(*command.split(), "--help")
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", shown.partition("╭")[2]))
    assert section and bool(options - {"--help", "--version"}) == (command != "list")
    assert options - {"--help", "--version"} <= set(re.findall(r"--[a-z][\w-]+", section))


def test_every_function_of_the_header_is_in_the_reference() -> None:
    header = (ROOT / hooks().HEADER).read_text(encoding="utf-8")
    text = hooks().c_interface(header)
    declared = re.findall(r"^ATM_API .*?;", header, re.M | re.S)
    assert len(declared) > 20 and all(each in text for each in declared)
    assert "#if" not in text and "extern" not in text


def test_every_field_of_a_run_is_in_the_reference(finished_run: Path) -> None:
    page = (DOCS / "reference" / "run-folder.md").read_text(encoding="utf-8")
    _, manifest, report = re.split(r"^## (?:manifest|report)\.json$", page, flags=re.M)
    for name, text in (("manifest", manifest), ("report", report)):
        document = json.loads((finished_run / f"{name}.json").read_text(encoding="utf-8"))
        named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.M))))
        assert set(document) <= named, name
        inner = set(re.findall(r"`(\w+)`", text))
        for field in ("interface", "golden", "weights", "preprocessing", "gflops", "latency"):
            if isinstance(document.get(field), dict) and (name, field) != ("report", "weights"):
                assert set(document[field]) <= inner, field
    for file in finished_run.iterdir():
        assert f"`{file.name}`" in page, file.name


def test_the_tree_of_errors_is_in_the_reference() -> None:
    text = hooks().exit_codes()
    for code in (*range(1, 13), 130):
        assert re.search(rf" {code}\b", text), code
