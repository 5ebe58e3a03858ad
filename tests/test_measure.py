"""Figures that no hand typed: results fit their schema, and pages hold what the files hold."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from tests.runs import ended

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "docs" / "results"
FILES = [
    SHIPPED / f"{name}.json"
    for name in ("coverage", "embeddings", "engines", "fidelity", "precision", "pytorch", "speed")
]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/results.py"""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import results

    return results


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_what_ships_fits_the_schema_and_names_no_machine(file: Path, results: ModuleType) -> None:
    found = results.read(file)
    assert found.measurement == file.stem and found.rows and found.commit
    assert results.text_of(found) == file.read_text(encoding="utf-8")
    assert "/" not in "".join(str(getattr(row, "images", "")) for row in found.rows)


def test_the_schema_that_ships_is_that_of_the_tool(results: ModuleType) -> None:
    assert results.SCHEMA.read_text(encoding="utf-8") == results.schema_text()


def test_a_result_that_does_not_fit_is_refused(results: ModuleType, tmp_path: Path) -> None:
    document = json.loads(FILES[0].read_text(encoding="utf-8"))
    for wrong in ({"date": "today"}, {"machine": {}}, {"measurement": "other"}, {"more": 1}):
        spoiled = tmp_path / "spoiled.json"
        spoiled.write_text(json.dumps({**document, **wrong}), encoding="utf-8")
        with pytest.raises(ValueError, match="validation error"):
            results.read(spoiled)


def test_the_pages_hold_what_the_files_hold() -> None:
    ended(tool("draw_tables.py", "--check"))


def test_a_page_that_says_something_else_is_seen(results: ModuleType) -> None:
    import draw_tables

    marked = [
        text for page in draw_tables.PAGES if "<!-- table: " in (text := page.read_text("utf-8"))
    ]
    assert len(marked) >= 4
    for text in marked:
        emptied = draw_tables.MARKED.sub(r"\1\3", text)
        assert draw_tables.drawn(emptied) == text != emptied


def test_the_quick_form_measures_everything(results: ModuleType, tmp_path: Path) -> None:
    """On what ships: the demo and its held-out digits."""
    ended(tool("measure.py", "--quick", "--out", tmp_path))
    found = {path.stem: results.read(path) for path in tmp_path.iterdir()}
    assert set(found) == set(results.KINDS)
    assert not found["embeddings"].rows  # the demo classifies
    (row,) = found["fidelity"].rows
    assert (row.model, row.preset, row.top1.of) == ("demo", "lossless", 360)
    assert row.top1.percent == pytest.approx(98.889) == row.unmerged_top1.percent
    assert row.gflops < row.unmerged_gflops / 2
    assert all(row.proven for row in found["coverage"].rows)
    rows = found["speed"].rows
    assert {row.policy for row in rows} == {"unmerged", "adaptive", "frozen", "per-image"}
    assert {(row.threads, row.batch) for row in rows} == {(1, 1), (1, 8), (2, 1), (2, 8)}
    built = bool(find_spec("tensorrt_rtx"))
    assert {row.precision for row in found["precision"].rows} == {
        "int8",
        *(["fp16"] if built else []),
    }
    assert bool(found["engines"].rows) == built
    candidates = {(row.candidate, row.training) for row in found["pytorch"].rows}
    assert len(candidates) == 6


@pytest.mark.parametrize(
    "wrong", [["--only", "nothing"], ["--weights", "deit_t"], ["--images", "nowhere"]]
)
def test_a_mistake_is_one_line(wrong: list[str]) -> None:
    done = tool("measure.py", *wrong)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("measure.py: error: ")
