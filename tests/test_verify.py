"""`verify`: zero only when every byte and every golden vector holds."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from atm_export import errors
from atm_export.backends import TENSORRT, backends
from atm_export.backends.base import choose_artifact
from atm_export.backends.runner import Serving
from atm_export.backends.tensorrt import backend as tensorrt
from atm_export.backends.tensorrt.backend import check_engine
from atm_export.backends.tensorrt.fit import Here
from atm_export.cli import main
from atm_export.runs.manifest import manifest_of
from atm_export.runs.reading import MANIFEST, Run, load_document, open_run
from atm_export.runs.seal import sealed
from atm_export.runs.tensors import packed, unpacked
from atm_export.runtime import Session, check_golden, load
from atm_export.runtime.__main__ import main as slim
from tests.manifests import engine_facts
from tests.runs import run_command

ENGINE = "model.fp16.rtx.sm89.plan"
HERE = Here("rtx", "1.7.1.116", 89)


@pytest.fixture
def run(uint8_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(uint8_folder, tmp_path / "run"))


def reseal(run: Path, **changes: object) -> None:
    """Write the manifest anew, its hashes true, as an export would have."""
    manifest = {**json.loads((run / MANIFEST).read_text()), **changes}
    manifest["files"] = {
        name: {
            "bytes": (run / name).stat().st_size,
            "sha256": hashlib.sha256((run / name).read_bytes()).hexdigest(),
        }
        for name in manifest["files"]
    }
    (run / MANIFEST).write_bytes(sealed(manifest))


def test_a_whole_run_is_verified(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    run_command("verify", str(run))
    text = capsys.readouterr().out
    assert "5 files and the manifest's seal hold" in text and "verified 1 run folder" in text
    assert slim(["verify", str(run), "--providers", "cpu"]) == 0
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    assert main(["verify"]) == errors.ConfigError.exit_code


def test_one_flipped_byte_anywhere_is_refused_by_load_and_verify(run: Path) -> None:
    generator = random.Random(0)
    for file in sorted(run.iterdir()):
        whole = file.read_bytes()
        for _ in range(25):
            broken = bytearray(whole)
            broken[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
            file.write_bytes(broken)
            with pytest.raises(errors.RunFolderError):
                load(run)
            assert main(["verify", str(run)]) == 10
            assert slim(["verify", str(run)]) == 10
        file.write_bytes(whole)
    run_command("verify", str(run))


def test_golden_numbers_that_do_not_hold_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "golden.safetensors"
    for name in ("logits", "batch_logits", "picture_logits", "picture_pixels"):
        arrays = dict(unpacked(path.read_bytes(), str(path)))
        whole = path.read_bytes()
        step = 2 if name == "picture_pixels" else np.float32(0.01)
        arrays[name] = arrays[name] + arrays[name].dtype.type(step)
        path.write_bytes(packed(arrays))
        reseal(run)
        assert main(["verify", str(run)]) == errors.ParityError.exit_code, name
        if name == "logits":
            with pytest.raises(errors.GoldenMismatchError, match="does not compute"):
                load(run)
            load(run, warm_up=False)
        path.write_bytes(whole)
        reseal(run)
    assert "differs by 0.01" in capsys.readouterr().err
    run_command("verify", str(run))


def test_a_run_without_golden_vectors_cannot_be_verified(run: Path) -> None:
    reseal(run, golden=None)
    load(run)
    assert main(["verify", str(run)]) == errors.RunFolderError.exit_code


def test_another_opset_and_unproven_runs_have_their_own_errors(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reseal(run, status="unproven")
    with pytest.raises(errors.UnprovenError):
        load(run)
    load(run, allow_unproven=True)
    reseal(run, status="proven")
    monkeypatch.setattr("onnxruntime.__version__", "1.16.3")
    with pytest.raises(errors.RuntimeVersionError):
        load(run)


def with_engine(run: Path, **facts: object) -> Run:
    entry = {"sms": [86, 89], **facts}
    return with_engines(run, {ENGINE: entry}, {"bytes": 1, "sha256": "0" * 64})


def with_engines(run: Path, changes: dict[str, dict[str, Any]], listed: dict[str, Any]) -> Run:
    """The run with engines that differ from a plain one by `changes`, each `listed` so."""
    document = load_document(run)
    source = {"file": "model.onnx", "sha256": document["files"]["model.onnx"]["sha256"]}
    plain = engine_facts(flavor="rtx", tensorrt="1.7.1.116", source=source)
    engines = {name: {**plain, **facts} for name, facts in changes.items()}
    files = {**document["files"], **dict.fromkeys(engines, listed)}
    return Run(run, manifest_of({**document, "engines": engines, "files": files}))


def test_engines_are_checked_before_they_are_opened(run: Path) -> None:
    assert check_engine(with_engine(run), ENGINE, HERE).flavor == "rtx"
    other = {"file": "model.onnx", "sha256": "1" * 64}
    for facts, error, message in (
        ({"flavor": "tensorrt"}, errors.EngineMismatchError, "flavor tensorrt, this is rtx"),
        ({"sms": [86]}, errors.EngineMismatchError, "SM86, this GPU is SM89"),
        ({"tensorrt": "1.6.0.1"}, errors.EngineVersionError, r"1\.7\.1\.116 is installed"),
        ({"source": other}, errors.EngineMismatchError, "another model"),
    ):
        with pytest.raises(error, match=message):
            check_engine(with_engine(run, **facts), ENGINE, HERE)
    with pytest.raises(errors.MissingFileError, match="has no engine"):
        check_engine(open_run(run), "x.plan", HERE)


def test_one_rule_chooses_the_engine(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Here("rtx", "1.7.1.116", 89)
    monkeypatch.setattr(tensorrt, "here", lambda flavor=None: here)
    backend = backends[TENSORRT]
    engines: dict[str, dict[str, Any]] = {
        "a.plan": {"precision": "fp32", "sms": [86]},
        "b.plan": {"precision": "fp16", "sms": [89]},
        "c.plan": {"precision": "fp32", "sms": [89], "flavor": "tensorrt"},
        "d.plan": {"precision": "bf16", "sms": [86, 89]},
    }
    whole = with_engines(run, engines, {"bytes": 1, "sha256": "0" * 64})
    assert backend.artifacts(whole) == ("a.plan", "c.plan", "b.plan", "d.plan")
    assert choose_artifact(backend, whole) == "b.plan"
    assert choose_artifact(backend, whole, "d.plan") == "d.plan"
    with pytest.raises(errors.EngineMismatchError, match="SM86, this GPU is SM89"):
        choose_artifact(backend, whole, "a.plan")
    with pytest.raises(errors.MissingFileError, match=r"has no 'e.plan'.* a.plan, c.plan"):
        choose_artifact(backend, whole, "e.plan")
    with pytest.raises(errors.EngineMismatchError, match="none was built"):
        choose_artifact(backend, open_run(run))


def test_compatible_engines_run_elsewhere(run: Path) -> None:
    for settings, here in (
        ({"version_compatible": True}, Here("rtx", "1.9.0.1", 89)),
        ({"hardware_compatible": True}, Here("rtx", "1.7.1.116", 120)),
    ):
        check_engine(with_engine(run, settings=settings), ENGINE, here)
        with pytest.raises(errors.EngineMismatchError):
            check_engine(with_engine(run), ENGINE, here)


class HalfAnswers:
    """A backend that answers like an FP16 engine."""

    about, providers = "TensorRT rtx", ("TensorRT rtx",)
    facts: ClassVar = {"validation": {"tolerance": {"min_cosine_logits": 0.995}}}

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": self.session.run(image)["logits"] * np.float32(1.01)}


def test_engines_are_judged_by_their_precision(run: Path) -> None:
    exact = load(run)
    half = Session(exact.run_folder, HalfAnswers(exact))
    assert half.engine is not None and all(finding.ok for finding in check_golden(half))
    HalfAnswers.facts["validation"]["tolerance"]["min_cosine_logits"] = 1.1
    assert not all(finding.ok for finding in check_golden(half))


def test_engines_without_tensorrt_name_the_extra(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delattr("atm_export.backends.tensorrt.api", raising=False)  # if imported before
    monkeypatch.setitem(sys.modules, "atm_export.backends.tensorrt.api", None)
    with pytest.raises(errors.MissingDependencyError, match="trt"):
        load(run, engine="auto")


def test_engines_without_a_gpu_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atm_export.backends.tensorrt.api.gpu_sm", lambda: None)
    with pytest.raises(errors.EngineMismatchError, match=r"none is here|no engine"):
        load(run, engine="auto")


class Runner:
    """A TensorRT runner that notices when two threads use it at once."""

    made: ClassVar[list[Runner]] = []

    def __init__(self, plan: Path, facts: object, *, static: bool, read: object) -> None:
        self.busy, self.static = threading.Lock(), static
        self.made.append(self)

    def __enter__(self) -> Runner:
        return self

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        assert self.busy.acquire(blocking=False), "a runner serves one thread"
        time.sleep(0.002)
        self.busy.release()
        return {"logits": image * 2}


def test_requests_at_once_have_runners_of_their_own(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atm_export.backends.tensorrt.runner.TensorRTRunner", Runner)
    (run / ENGINE).write_bytes(b"plan")
    listed = {"bytes": 4, "sha256": hashlib.sha256(b"plan").hexdigest()}
    monkeypatch.setattr(tensorrt, "here", lambda flavor=None: HERE)
    whole = with_engines(run, {ENGINE: {"sms": [89]}}, listed)
    backend = backends[TENSORRT].serve(whole, ENGINE, Serving())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: backend.run(np.full(1, n)), range(200)))
    assert [int(answer["logits"][0]) for answer in answers] == [2 * n for n in range(200)]
    assert 1 <= len(Runner.made) <= 8
    (run / ENGINE).write_bytes(b"plat")
    with pytest.raises(errors.ChangedFileError):
        backends[TENSORRT].serve(whole, ENGINE, Serving())


def test_the_slim_command_labels_images(
    demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    assert slim(["classify", str(demo_folder), str(tmp_path / "a.png"), "--top-k", "2"]) == 0
    assert capsys.readouterr().out.count("%") == 2
    assert slim(["classify", str(demo_folder), "absent.png"]) == errors.DataError.exit_code
    assert slim(["verify", str(demo_folder), "--backend", "onnxruntime"]) == 0
    assert (
        slim(["verify", str(demo_folder), "--backend", "nothing"]) == errors.ConfigError.exit_code
    )
