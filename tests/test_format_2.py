"""Run folders of format 2 are read, by every reader, as what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from atm_export.cli import main
from atm_export.errors import ManifestError
from atm_export.runs.golden import read_golden
from atm_export.runs.manifest import FORMAT
from atm_export.runs.reading import MANIFEST, load_document, open_run
from atm_export.runs.writing import extend, working
from atm_export.runtime import check_golden, load
from atm_export.runtime.__main__ import main as slim
from atm_export.tasks.stated import CLASSIFIER
from atm_export.triton import write_repository

OLD = Path(__file__).with_name("data") / "run_of_format_2"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_it_is_of_format_2() -> None:
    manifest = json.loads((OLD / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["format"] == 2 and FORMAT == 3
    assert not {"task", "proven_on"} & manifest.keys()


def test_it_reads_as_a_classifier_of_todays_format() -> None:
    manifest = open_run(OLD).manifest
    assert manifest.format == FORMAT and manifest.proven_on == {}
    assert manifest.document["task"] == CLASSIFIER
    assert manifest.answers.task == "classify" and manifest.answers.ranks == "logits"


def test_it_answers_as_it_did() -> None:
    session = load(OLD)
    for check in check_golden(session):
        assert check.ok, check
    picture = read_golden(open_run(OLD)).picture
    assert picture is not None
    file = picture.file.tobytes()
    assert np.abs(session.predict([file]) - picture.answers["logits"]).max() < 1e-3
    assert session.classify(file)[0][0].name


def test_it_is_verified_and_served(old: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    assert main(["verify", str(old)]) == slim(["verify", str(old), "--providers", "cpu"]) == 0
    assert write_repository(old, tmp_path / "models").folder.is_dir()
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_what_is_added_to_it_makes_it_todays(old: Path) -> None:
    with working(old, "key") as work:
        work.write("note.txt", b"more")
        extend(work, old, ["note.txt"], {})
    written = json.loads((old / MANIFEST).read_text(encoding="utf-8"))
    assert written["format"] == FORMAT and written["task"] == CLASSIFIER
    assert main(["verify", str(old)]) == 0


def test_its_seal_holds_it_too(old: Path) -> None:
    path = old / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"format": 2', b'"format": 3'))
    with pytest.raises(ManifestError, match="was changed after the export"):
        load_document(old)
