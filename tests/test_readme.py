"""What the README and the checks promise."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from atm_export.cli import app

ROOT = Path(__file__).resolve().parents[1]


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_are_there_and_ci_runs_them() -> None:
    text, ci = readme(), (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install . && atm-export demo" in text
    assert 'pip install ".[dev]" && pytest' in text
    for command in ("pip install --quiet .\n", 'pip install --quiet ".[dev]"', "atm-export demo"):
        assert command in ci
    assert "tools/check.sh" in ci
    assert "pytest" in (ROOT / "tools" / "check.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^atm-export (.*)$", readme(), re.M))))
def test_every_command_of_the_readme_parses(line: str) -> None:
    arguments = line.split("#")[0].split()
    app.parse_args(arguments, exit_on_error=False, print_error=False)


def test_extras_and_entry_point_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"data", "dev", "ray", "rtx", "runtime", "service", "trt", "tune"}
    assert set(project["optional-dependencies"]) == extras
    assert project["scripts"] == {"atm-export": "atm_export.cli:main"}


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"`((?:tools|atm_export|model|export_configs)/[\w./]+)`", readme()):
        places = (ROOT / name, ROOT / "atm_export" / name)
        assert any(place.exists() for place in places), name
