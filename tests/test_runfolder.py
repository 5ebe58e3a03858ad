"""A run folder is trusted only when every byte of it is what the export wrote."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from atm_export import errors
from atm_export.runs.reading import MANIFEST, load_document, open_run
from atm_export.runs.seal import sealed
from atm_export.runs.writing import extend, publish, working
from tests.manifests import FILES, engine_facts, least_facts


@pytest.fixture
def run(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    with working(out, "key") as work:
        work.write("a.txt", b"some bytes")
        work.write("b.txt", bytes(range(256)))
        for name in FILES:
            work.write(name, b"{}")
        publish(work, out, ["a.txt", "b.txt", *FILES], least_facts())
    return out


def test_a_whole_run_opens(run: Path) -> None:
    opened = open_run(run)
    assert opened.folder == run and opened.manifest.model == "δ"
    assert opened.graph == run / "model.onnx"


def test_one_flipped_bit_anywhere_is_refused(run: Path) -> None:
    generator = random.Random(0)
    for file in sorted(run.iterdir()):
        whole = file.read_bytes()
        spots = [(i, 0) for i in range(len(whole))] if file.name == MANIFEST else []
        spots += [(generator.randrange(len(whole)), generator.randrange(8)) for _ in range(100)]
        for position, bit in spots:
            broken = bytearray(whole)
            broken[position] ^= 1 << bit
            file.write_bytes(broken)
            with pytest.raises(errors.RunFolderError):
                open_run(run)
        file.write_bytes(whole)
    open_run(run)


def test_every_mismatch_has_its_own_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.NotARunError, match="no run folder"):
        open_run(tmp_path)
    (run / "a.txt").write_bytes(b"other byte")
    with pytest.raises(errors.ChangedFileError, match=r"a\.txt was changed"):
        open_run(run)
    (run / "a.txt").unlink()
    with pytest.raises(errors.MissingFileError, match=r"a\.txt is missing"):
        open_run(run)
    text = (run / MANIFEST).read_bytes()
    (run / MANIFEST).write_bytes(text.replace(b'"format": 3', b'"format": 1'))
    with pytest.raises(errors.RunFormatError, match="run format 1"):
        open_run(run)
    (run / MANIFEST).write_bytes(text[: len(text) // 2])
    with pytest.raises(errors.ManifestError, match="damaged"):
        open_run(run)
    (run / MANIFEST).write_bytes(text.replace(b"proven", b"unsure"))
    with pytest.raises(errors.ManifestError, match="changed"):
        open_run(run)
    manifest = json.loads(text) | {"status": "unproven"}
    (run / MANIFEST).write_bytes(sealed(manifest))
    (run / "a.txt").write_bytes(b"some bytes")
    with pytest.raises(errors.UnprovenError, match="not proven"):
        open_run(run)
    assert open_run(run, allow_unproven=True).manifest.status == "unproven"


def test_a_finished_run_can_be_extended(run: Path) -> None:
    with working(run, "later") as work:
        work.write("engine.plan", b"engine")
        extend(work, run, ["engine.plan"], {"engines": {"engine.plan": engine_facts()}})
    opened = open_run(run)
    assert sorted(opened.manifest.files) == sorted(["a.txt", "b.txt", "engine.plan", *FILES])
    assert opened.manifest.engines and opened.manifest.model == "δ"
    assert load_document(run)["run_key"] == "key"
