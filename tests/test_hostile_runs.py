"""Run folders that somebody edited and sealed again: refused in one line, wherever they are read.

The seal is true in every one of them; what is wrong is what the manifest, the golden vectors or the
results say.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atm_export import errors
from atm_export.cli import main
from atm_export.config import exported_config
from atm_export.preprocess import _FILTERS
from atm_export.prove.finished import prove_again
from atm_export.pytest_plugin import ProofItem
from atm_export.report.documents import BENCH, EVALUATION, REPORT
from atm_export.report.page import page
from atm_export.runs.manifest import manifest_of
from atm_export.runs.manifest_check import _PREPROCESSING, check_manifest
from atm_export.runs.reading import MANIFEST, load_document, open_run
from atm_export.runs.seal import sealed
from atm_export.runs.tensors import packed, unpacked
from atm_export.runtime import load
from atm_export.runtime.__main__ import main as slim
from atm_export.subject import exported_subject
from atm_export.triton import write_repository
from tests.manifests import engine_facts, least_facts
from tests.test_verify import reseal

GOLDEN = "golden.safetensors"


@pytest.fixture
def run(demo_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_folder, tmp_path / "run"))


def written(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / MANIFEST).read_text(encoding="utf-8")))


def without(value: Any, *path: str | int) -> Any:
    """A copy that lacks what lies at `path`."""
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


def having(value: Any, new: Any, *path: str | int) -> Any:
    """A copy with `new` at `path`."""
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return changed


FIELDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no labels": lambda m: without(m, "labels"),
    "no method": lambda m: without(m, "method"),
    "no merge": lambda m: without(m, "method", "merge"),
    "no summary": lambda m: without(m, "method", "summary"),
    "no opset": lambda m: without(m, "opset"),
    "no golden": lambda m: without(m, "golden"),
    "no golden file": lambda m: without(m, "golden", "file"),
    "golden that is not listed": lambda m: having(m, "../x", "golden", "file"),
    "no tolerance": lambda m: without(m, "golden", "tolerance"),
    "no interface": lambda m: without(m, "interface"),
    "no logits": lambda m: without(m, "interface", "outputs", "logits"),
    "no preprocessing": lambda m: without(m, "preprocessing"),
    "no weights": lambda m: without(m, "weights"),
    "no config": lambda m: without(m, "config"),
    "no status": lambda m: without(m, "status"),
    "no files": lambda m: without(m, "files"),
    "no graph": lambda m: without(m, "files", "model.onnx"),
    "labels of a number": lambda m: having(m, 3, "labels"),
    "too few labels": lambda m: having(m, ["one"], "labels"),
    "opset of a text": lambda m: having(m, "20", "opset"),
    "opset that is true": lambda m: having(m, True, "opset"),
    "a list for a method": lambda m: having(m, [], "method"),
    "an unknown policy": lambda m: having(m, "sometimes", "method", "merge"),
    "a number for a file": lambda m: having(m, 3, "files", "model.onnx"),
    "a file elsewhere": lambda m: having(m, m["files"]["model.onnx"], "files", "../x"),
    "a size that is no number": lambda m: having(m, ["a", 2], "preprocessing", "size"),
    "another size": lambda m: having(m, [8, 8], "preprocessing", "size"),
    "a crop of next to nothing": lambda m: having(m, 1e-9, "preprocessing", "crop_pct"),
    "no deviation": lambda m: having(m, [0, 0, 0], "preprocessing", "std"),
    "an unknown filter": lambda m: having(m, "best", "preprocessing", "interpolation"),
    "too few blocks": lambda m: having(m, [None], "method", "r_per_block"),
    "an engine of nothing": lambda m: having(m, {"x.plan": {}}, "engines"),
    "engines of a list": lambda m: having(m, ["x"], "engines"),
}


def seal(run: Path, manifest: dict[str, Any]) -> None:
    (run / MANIFEST).write_bytes(sealed(manifest))


def commands(run: Path, out: Path) -> Iterator[list[str]]:
    yield ["evaluate", str(run), "--imagenet", str(out)]
    yield ["bench", str(run)]
    yield ["triton", str(run), "--triton-repo", str(out / "models")]
    yield ["visualize", str(run), str(out), "--out", str(out / "pictures")]
    yield ["verify", str(run)]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("atm-export: ")]
    assert len(lines) == 1 and "Traceback" not in text, text
    assert len(lines[0]) < 600
    return lines[0]


@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS)
def test_every_command_refuses_a_manifest_that_lies(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seal(run, change(written(run)))
    before = sorted(tmp_path.rglob("*"))
    for command in commands(run, tmp_path):
        assert main(command) == 10, command
        assert str(run) in one_line(capsys)
    for arguments in (["verify", str(run)], ["classify", str(run), "a.png"]):
        assert slim(arguments) == 10
        assert str(run) in one_line(capsys)
    for read in (load, open_run, prove_again, write_repository_of(tmp_path)):
        with pytest.raises(errors.RunFolderError):
            read(run)
    assert sorted(tmp_path.rglob("*")) == before


def write_repository_of(out: Path) -> Callable[[Path], Any]:
    return lambda run: write_repository(run, out / "models")


def test_the_main_command_does_not_trust_it_either(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seal(run, having(written(run), [], "config"))
    assert main(["demo", "--no-benchmark", "--out", str(run)]) in (2, 10)
    one_line(capsys)


DAMAGED = {
    "nested": b'{"files":' * 100_000,
    "a list": b"[]",
    "a number": b"3",
    "nothing": b"",
    "keys twice": b'{"format": 2, "format": 2, "files": {}}',
    "NaN": b'{"format": NaN, "files": {}}',
    "a format of true": b'{"format": true, "files": {}}',
    "a long format": b'{"format": "' + b"9" * 5000 + b'", "files": {}}',
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_manifest(data: bytes, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / MANIFEST).write_bytes(data)
    with pytest.raises(errors.RunFolderError):
        load_document(run)
    assert main(["verify", str(run)]) == 10
    one_line(capsys)


def paths(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a document."""
    if at:
        yield at
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in list(keys)[:6]:
        yield from paths(value[key], (*at, key))


WRONG = (None, "x", -1, 10**15, 1.5, True, [], {}, [[]], 1e29)


def test_what_is_taken_may_be_relied_on(run: Path, tmp_path: Path) -> None:
    """Hundreds of manifests, one value changed or gone: refused as a run folder, or of use."""
    whole = written(run)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    refused = taken = 0
    for path in paths({key: value for key, value in whole.items() if key != "files"}):
        for new in (..., *WRONG):
            manifest = without(whole, *path) if new is ... else having(whole, new, *path)
            try:
                values = manifest_of(manifest)
                exported_config(values.config, "manifest.json")
            except (errors.ManifestError, ValueError):
                refused += 1
                continue
            taken += 1
            assert page(values, report)
    assert refused > 300 and taken > 50


@pytest.mark.parametrize(
    "path",
    [
        ("config", "method", "point"),
        ("config", "method", "r"),
        ("config", "model", "name"),
        ("config", "model", "image_size"),
        ("config", "model", "config", "family"),
        ("config", "model", "config", "architecture"),
        ("config", "model", "config", "options"),
        ("config", "method", "merge"),
        ("method", "r_per_block"),
    ],
    ids=lambda path: ".".join(path),
)
def test_a_model_that_cannot_be_built_again_is_one_line(path: tuple[str, ...], run: Path) -> None:
    whole = written(run)
    for new in (None, "x", -1, 48, [], [1, 2], {"a": 1}, {"img_size": 1e9}):
        seal(run, having(whole, new, *path))
        try:
            exported_subject(open_run(run).manifest, "manifest.json")
        except errors.AtmExportError as error:
            assert "\n" not in str(error)


def test_names_of_filters_are_those_of_the_preprocessing() -> None:
    facts = least_facts()["preprocessing"]
    for name in _FILTERS:
        _PREPROCESSING({**facts, "interpolation": name}, "")


def test_the_least_manifest_is_taken() -> None:
    files = {
        name: {"bytes": 1, "sha256": "0" * 64}
        for name in ("model.onnx", "config.yaml", "report.json", "x.plan")
    }
    facts = {**least_facts(), "run_key": "key", "files": files}
    check_manifest(facts)
    check_manifest({**facts, "engines": {"x.plan": engine_facts()}})
    for path in paths(engine_facts()):
        if isinstance(path[-1], str) and path[-1] not in ("mode", "image"):
            with pytest.raises(ValueError, match=f"{path[-1]} is missing"):
                check_manifest({**facts, "engines": {"x.plan": without(engine_facts(), *path)}})


def golden_with(run: Path, **changes: Any) -> None:
    arrays = dict(unpacked((run / GOLDEN).read_bytes(), GOLDEN)) | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    (run / GOLDEN).write_bytes(packed(kept))
    reseal(run)


F, U = np.float32, np.uint8
BAD_GOLDEN: dict[str, dict[str, Any]] = {
    "no images": {"images": None},
    "no picture": {"picture": None},
    "no logits of the picture": {"picture_logits": None},
    "zero images": {"images": np.zeros((0, 56, 56, 3), U), "logits": np.zeros((0, 10), F)},
    "an empty batch": {"batch_logits": np.zeros((0, 10), F)},
    "a batch of too many": {"batch_logits": np.zeros((9, 10), F)},
    "too few logits": {"logits": np.zeros((1, 10), F)},
    "other classes": {"logits": np.zeros((4, 7), F)},
    "another size": {"images": np.zeros((4, 8, 8, 3), U)},
    "another rank": {"images": np.zeros((4, 56), U)},
    "a single number": {"images": np.zeros((), U)},
    "images of floats": {"images": np.zeros((4, 56, 56, 3), F)},
    "logits of bytes": {"logits": np.zeros((4, 10), U)},
    "an empty picture": {"picture": np.zeros(0, U)},
    "a picture of floats": {"picture": np.zeros(9, F)},
    "no pixels": {"picture_pixels": np.zeros((0, 0, 3), U)},
    "NaN": {"logits": np.full((4, 10), np.nan, F)},
    "infinity": {"batch_logits": np.full((1, 10), np.inf, F)},
}


@pytest.mark.parametrize("changes", BAD_GOLDEN.values(), ids=BAD_GOLDEN)
def test_golden_vectors_that_prove_nothing(
    changes: dict[str, Any], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden_with(run, **changes)
    with pytest.raises(errors.RunFolderError, match="golden"):
        load(run)
    models = str(tmp_path / "models")
    for command in (["verify", str(run)], ["triton", str(run), "--triton-repo", models]):
        assert main(command) == 10
        assert "golden" in one_line(capsys)
    assert slim(["verify", str(run)]) == 10


def tensor_file(header: bytes, size: int | None = None, data: bytes = b"") -> bytes:
    return (len(header) if size is None else size).to_bytes(8, "little") + header + data


ENTRY = b'{"a":{"dtype":"F32","shape":%s,"data_offsets":%s}}'
LYING = {
    "a header longer than the file": tensor_file(b"{}", 10**18),
    "a header of nothing": tensor_file(b""),
    "nested": tensor_file(b'{"a":' * 100_000),
    "a list": tensor_file(b"[]"),
    "a list for an array": tensor_file(b'{"a":[]}'),
    "no shape": tensor_file(b'{"a":{"dtype":"F32","data_offsets":[0,0]}}'),
    "a type that is a list": tensor_file(b'{"a":{"dtype":[],"shape":[],"data_offsets":[0,4]}}'),
    "a negative length": tensor_file(ENTRY % (b"[-1,-1]", b"[0,4]"), data=b"0000"),
    "a length that is true": tensor_file(ENTRY % (b"[true]", b"[0,4]"), data=b"0000"),
    "a length of half": tensor_file(ENTRY % (b"[1.5]", b"[0,6]"), data=b"000000"),
    "nothing, many times": tensor_file(ENTRY % (b"[0,9223372036854775807]", b"[0,0]")),
    "many axes": tensor_file(ENTRY % (b"[" + b"1," * 99 + b"1]", b"[0,4]"), data=b"0000"),
    "too much": tensor_file(ENTRY % (b"[4294967296,4294967296]", b"[0,0]")),
    "backwards": tensor_file(ENTRY % (b"[1]", b"[4,0]"), data=b"0000"),
    "beyond the end": tensor_file(ENTRY % (b"[1]", b"[4,8]"), data=b"0000"),
    "three offsets": tensor_file(ENTRY % (b"[1]", b"[0,4,4]"), data=b"0000"),
}


@pytest.mark.parametrize("data", LYING.values(), ids=LYING)
def test_tensor_headers_that_lie(data: bytes) -> None:
    with pytest.raises(errors.RunFolderError, match="no safetensors file"):
        unpacked(data, "x")


@pytest.mark.parametrize(
    "data", [b'{"a":' * 100_000, b"[]", b"{}", b"", b'{"gflops": NaN}', b"\xff"], ids=str
)
def test_a_report_that_cannot_be_read_stops_before_the_work(
    data: bytes, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "report.json").write_bytes(data)
    reseal(run)
    for command in (["evaluate", str(run), "--imagenet", "absent"], ["bench", str(run)]):
        assert main(command) == 10
        assert "report.json" in one_line(capsys)


def test_every_field_of_a_report_that_the_page_reads_is_checked(demo_folder: Path) -> None:
    manifest = open_run(demo_folder).manifest
    whole = json.loads((demo_folder / "report.json").read_text(encoding="utf-8"))
    assert page(manifest, whole)
    REPORT(whole, "")
    for path in paths(whole):
        for new in (..., *WRONG):
            report = without(whole, *path) if new is ... else having(whole, new, *path)
            try:
                REPORT(report, "")
            except ValueError:
                continue
            if report.get("information_loss") == whole["information_loss"]:
                assert page(manifest, report), path


SHARE = {"percent": 98.5, "low": 97.0, "high": 99.0}
EVALUATED = {
    "runner": "eager",
    "device": "CPU",
    "batch": 8,
    "threads": 1,
    "data": {"images": 8, "place": "x", "labels": None},
    "unreadable": [{"image": "a", "reason": "b"}],
    "gflops": {"mean": 1.0, "unmerged": 2.0, "min": 1.0, "median": 1.0, "max": 1.0},
    "tokens": {"mean_after_block": [3.0, 2.0], "source": "x"},
    "top1": SHARE,
    "top5": SHARE,
    "agreement": SHARE,
    "unmerged": {"top1": SHARE, "top5": SHARE},
    "rate": {"images": 8, "images_per_s": 2.0, "share_in_model": 0.5},
}
BENCHED = {
    "rows": [
        {
            "backend": "eager",
            "candidate": "unmerged",
            "batch": 1,
            "rounds": 3,
            "median_ms": 1.0,
            "p90_ms": 1.0,
            "p99_ms": 1.0,
            "images_per_s": 1.0,
            "flops_ratio": 1.0,
            "speedup": {"median": 1.0, "low": 0.9, "high": 1.1},
        }
    ],
    "images": 8,
    "threads": 1,
    "source": "digits",
    "recommendation": "x",
}


@pytest.mark.parametrize(("check", "whole"), [(EVALUATION, EVALUATED), (BENCH, BENCHED)])
def test_results_that_are_read_again_are_checked(
    check: Callable[[Any, str], None], whole: dict[str, Any], demo_folder: Path
) -> None:
    manifest = open_run(demo_folder).manifest
    report = json.loads((demo_folder / "report.json").read_text(encoding="utf-8"))

    def drawn(facts: dict[str, Any]) -> str:
        check(facts, "")
        if check is BENCH:
            return page(manifest, report, bench=facts)
        return page(manifest, report, [facts])

    assert drawn(whole)
    assert check is EVALUATION or drawn({**whole, "rows": []})
    refused = 0
    for path in paths(whole):
        for new in (..., *WRONG):
            try:
                assert drawn(without(whole, *path) if new is ... else having(whole, new, *path))
            except ValueError as error:
                assert "must be" in str(error) or "is missing" in str(error)
                refused += 1
    assert refused > 100


def test_the_plugin_says_it_in_one_line(run: Path) -> None:
    seal(run, without(written(run), "method"))
    for name in ("manifest", "golden", "eager"):
        item = ProofItem.__new__(ProofItem)
        item.name, item.folder = name, run
        item.config = type("Config", (), {"stash": _Stash()})()  # type: ignore[assignment]
        with pytest.raises(errors.ManifestError, match="method is missing"):
            item.runtest()


class _Stash(dict):  # type: ignore[type-arg]
    def __missing__(self, key: object) -> dict[Any, Any]:
        return {}


def test_what_this_version_writes_is_taken(demo_folder: Path, uint8_folder: Path) -> None:
    for folder in (demo_folder, uint8_folder):
        assert load(folder).classes in (7, 10)
