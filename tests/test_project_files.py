"""Files that a forge reads: whole, and true to what is here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import atm_export

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: Path) -> list[tuple[str, Path]]:
    """What each step runs, and in which folder."""
    return [
        (step["run"], ROOT / step.get("working-directory", "."))
        for job in loaded(workflow)["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_ask_for_little_and_name_what_exists(workflow: Path) -> None:
    document = loaded(workflow)
    assert document["permissions"] == {"contents": "read"}
    for job in document["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert all(
            re.fullmatch(r"actions/[\w-]+@v\d+", s["uses"]) for s in job["steps"] if "uses" in s
        )
    for line, folder in commands(workflow):
        assert folder.is_dir()
        for name in re.findall(r"(?:^|\s)((?:\.ci|docs|tools)/[\w./-]+)", line):
            assert (folder / name).is_file(), name


def test_ci_and_distributions_are_what_the_workflows_run() -> None:
    lines = [line for workflow in WORKFLOWS for line, _ in commands(workflow)]
    assert ".ci/run" in lines and os.access(ROOT / ".ci" / "run", os.X_OK)
    built = [
        folder for file in WORKFLOWS for line, folder in commands(file) if "hatchling build" in line
    ]
    assert built == [ROOT, ROOT / "runtime" / "python"]
    assert any(line.startswith("mkdocs build --strict") for line in lines)


def test_issue_forms_are_complete() -> None:
    forms = [path for path in GITHUB.glob("ISSUE_TEMPLATE/*.yml") if path.name != "config.yml"]
    assert len(forms) == 3
    for form in map(loaded, forms):
        assert form["name"] and form["description"]
        fields = [each["id"] for each in form["body"]]
        assert len(set(fields)) == len(fields)
        assert all(each["attributes"]["label"] for each in form["body"])


def test_the_citation_names_the_paper_and_this_version() -> None:
    """Required keys are those of the Citation File Format 1.2.0."""
    cited = loaded(ROOT / "CITATION.cff")
    assert {"authors", "cff-version", "message", "title"} <= set(cited)
    assert cited["version"] == atm_export.__version__ and cited["license"] == "Apache-2.0"
    (paper,) = cited["references"]
    assert {"authors", "title", "type"} <= set(paper)
    assert paper["url"] == "https://arxiv.org/abs/2505.15160"
    assert paper["title"].startswith("Lossless Token Merging")


def test_pre_commit_runs_what_the_checks_run() -> None:
    (repository,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # nothing is fetched, and versions are those of [dev]
    check = (ROOT / "tools" / "check.sh").read_text(encoding="utf-8")
    for hook in repository["hooks"]:
        command = hook["entry"].removesuffix(" --force-exclude")
        assert re.search(rf"^{command}\b", check, re.M), command


def test_links_of_the_forge_files_lead_somewhere() -> None:
    for page in GITHUB.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), link
