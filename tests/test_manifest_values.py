"""A manifest as values: what is checked can be reached, and nothing is lost where it changes."""

from __future__ import annotations

import ast
import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from atm_export.runs.engine_facts import BuiltFacts, EngineFacts
from atm_export.runs.manifest import FORMAT, GoldenFacts, Manifest, manifest_of
from atm_export.runs.reading import MANIFEST, open_run, read_manifest
from atm_export.runs.seal import sealed
from atm_export.runs.writing import extend, working
from atm_export.runtime import load
from atm_export.tasks.stated import CLASSIFIER
from tests.manifests import FILES, engine_facts, having, least_facts

PACKAGE = Path(__file__).parents[1] / "atm_export"
OLD = Path(__file__).with_name("data") / "run_of_format_2"
PLAN = "x.plan"


def document(**changes: Any) -> dict[str, Any]:
    """A manifest with an engine and golden vectors, each with a field that nothing here knows."""
    engine = engine_facts(settings={"version_compatible": True, "level": 3})
    facts = {
        "format": FORMAT,
        "run_key": "key",
        **least_facts(),
        "files": {name: {"bytes": 1, "sha256": "0" * 64} for name in (*FILES, PLAN, "golden")},
        "engines": {PLAN: {**engine, "mood": "calm"}},
        "task": copy.deepcopy(CLASSIFIER),
        "proven_on": {"onnxruntime": "1.22"},
        "golden": {
            "file": "golden",
            "tolerance": {"logits": 1e-4, "picture_logits": 1e-3, "picture_grey_levels": 1},
            "kept": "in a cool place",
        },
        "later": {"deep": [1, {"er": None}]},
    }
    facts["method"] |= {"slices": 7}
    facts["weights"] |= {"source": "somewhere"}
    facts["preprocessing"] |= {"dither": False}
    return {**facts, **changes}


def demanded(told: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Places of plain values and lists without which a document is refused."""
    if isinstance(told, dict):
        for key in told:
            yield from demanded(told[key], (*at, key))
        return
    whole = document()
    inner = whole
    for key in at[:-1]:
        inner = inner[key]
    del inner[at[-1]]
    try:
        manifest_of(whole)
    except ValueError:
        yield at


def engine(manifest: Manifest) -> EngineFacts:
    return manifest.engines[PLAN]


def golden(manifest: Manifest) -> GoldenFacts:
    assert manifest.golden is not None
    return manifest.golden


REACHED: dict[str, Callable[[Manifest], Any]] = {
    "format": lambda m: m.format,
    "run_key": lambda m: m.run_key,
    "status": lambda m: m.status,
    "model": lambda m: m.model,
    "task name": lambda m: m.answers.task,
    "task ranks": lambda m: m.answers.ranks,
    "task outputs": lambda m: [
        {"name": each.name, "agreement": each.agreement} for each in m.answers.outputs
    ],
    "weights sha256": lambda m: m.weights.sha256,
    "method name": lambda m: m.method.name,
    "method merge": lambda m: m.method.merge,
    "method summary": lambda m: m.method.summary,
    "interface input name": lambda m: m.input.name,
    "interface input shape": lambda m: m.input.shape,
    "interface input dtype": lambda m: m.input.dtype,
    "interface input normalised": lambda m: not m.input.uint8,
    "interface outputs logits shape": lambda m: m.outputs["logits"].shape,
    "interface outputs logits dtype": lambda m: m.outputs["logits"].dtype,
    "opset": lambda m: m.opset,
    "preprocessing size": lambda m: m.input.preprocessing.size,
    "preprocessing crop_pct": lambda m: m.input.preprocessing.crop_pct,
    "preprocessing interpolation": lambda m: m.input.preprocessing.interpolation,
    "preprocessing crop_mode": lambda m: m.input.preprocessing.crop_mode,
    "preprocessing resize": lambda m: m.input.preprocessing.resize,
    "preprocessing mean": lambda m: m.input.preprocessing.mean,
    "preprocessing std": lambda m: m.input.preprocessing.std,
    "labels": lambda m: m.labels,
    "licence": lambda m: m.licence,
    "notes": lambda m: m.notes,
    "golden file": lambda m: golden(m).file,
    "golden tolerance logits": lambda m: golden(m).tolerance["logits"],
    "golden tolerance picture_logits": lambda m: golden(m).tolerance["picture_logits"],
    "golden tolerance picture_grey_levels": lambda m: golden(m).tolerance["picture_grey_levels"],
    "engines x.plan precision": lambda m: engine(m).precision,
    "engines x.plan flavor": lambda m: engine(m).flavor,
    "engines x.plan tensorrt": lambda m: engine(m).tensorrt,
    "engines x.plan sms": lambda m: engine(m).sms,
    "engines x.plan source file": lambda m: engine(m).source.file,
    "engines x.plan source sha256": lambda m: engine(m).source.sha256,
    "engines x.plan profiles": lambda m: engine(m).profiles,
    "engines x.plan tensors image dtype": lambda m: engine(m).tensors["image"].dtype,
    "engines x.plan tensors image shape": lambda m: engine(m).tensors["image"].shape,
    "engines x.plan bytes": lambda m: engine(m).bytes,
    "engines x.plan build activation_bytes": lambda m: engine(m).activation_bytes,
    "engines x.plan run status": lambda m: engine(m).status,
    "engines x.plan validation images": lambda m: engine(m).validation.images,
    "engines x.plan validation cosine_logits_of_nine_tenths": lambda m: (
        engine(m).validation.cosine_of_nine_tenths
    ),
    "engines x.plan validation min_cosine_logits": lambda m: engine(m).validation.min_cosine,
    "engines x.plan validation tolerance min_cosine_logits": lambda m: (
        engine(m).validation.least_cosine
    ),
}


def test_an_engine_says_what_it_takes_and_where_it_runs() -> None:
    told = manifest_of(document()).engines[PLAN]
    assert told.batches == ((1, 8, 64),) and told.recommendation is None
    assert told.version_compatible and not told.hardware_compatible
    assert told.validation.top1_agreement == told.validation.tokens_differing == 1.0
    built = BuiltFacts.of(told.document)
    assert (built.tensorrt, built.profiles) == (told.tensorrt, told.profiles)


def test_every_field_that_is_demanded_can_be_reached() -> None:
    told, manifest = document(), manifest_of(document())
    places = {" ".join(place): place for place in demanded(told)}
    files = {name for name in places if name.startswith("files ")}
    assert places.keys() - files == REACHED.keys()
    for name, place in places.items():
        wanted = told
        for key in place:
            wanted = wanted[key]
        if name in files:
            found = getattr(manifest.files[place[1]], place[2])
        else:
            found = REACHED[name](manifest)
        assert (list(found) if isinstance(found, tuple) else found) == wanted, name


def test_what_is_unknown_here_is_kept_and_can_be_reached() -> None:
    manifest = manifest_of(document())
    assert manifest.document == document()
    assert manifest.method.more["slices"] == 7 and "merge" not in manifest.method.more
    assert manifest.weights.document["source"] == "somewhere"
    assert manifest.engines[PLAN].document["mood"] == "calm"
    assert golden(manifest).document["kept"] == "in a cool place"
    assert manifest_of(json.loads(json.dumps(manifest.document))) == manifest


def test_a_change_keeps_the_rest_and_is_checked() -> None:
    manifest = manifest_of(document())
    changed = having(manifest, status="unproven")
    assert not changed.proven and changed.document == document(status="unproven")
    assert manifest.proven, "the first is as it was"
    with pytest.raises(ValueError, match="opset must be a whole number"):
        having(manifest, opset="20")
    with pytest.raises(FrozenInstanceError):
        manifest.status = "proven"  # type: ignore[misc]


@pytest.mark.parametrize("told", [4, True, "3", None])
def test_a_format_that_is_not_read_is_refused(told: Any) -> None:
    with pytest.raises(ValueError, match="format must be one of 2, 3"):
        manifest_of(document(format=told))


def test_a_folder_of_format_2_is_the_same_values() -> None:
    manifest = read_manifest(OLD)
    told = json.loads((OLD / MANIFEST).read_text(encoding="utf-8"))
    assert told["format"] == 2 and manifest.format == FORMAT
    assert manifest_of(told) == manifest, "the door takes it as it is written, too"
    assert manifest.answers.main.name == "logits" and manifest.proven_on == {}
    assert manifest.input == load(OLD).input and manifest.engines == {}


def test_an_addition_to_a_folder_keeps_every_field(tmp_path: Path) -> None:
    """As engines and results are added: the folder of format 2, with fields of a later version."""
    run = Path(shutil.copytree(OLD, tmp_path / "run"))
    told = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    told |= {"later": {"deep": [1, None]}}
    told["method"] |= {"slices": 7}
    (run / MANIFEST).write_bytes(sealed(told))
    with working(run, "key") as work:
        work.write(PLAN, b"engine")
        extend(work, run, [PLAN], {"engines": {PLAN: {**engine_facts(), "mood": "calm"}}})
    manifest = open_run(run).manifest
    assert manifest.engines[PLAN].document == {**engine_facts(), "mood": "calm"}
    assert manifest.method.more["slices"] == 7
    kept = {key for key in told if key not in ("format", "files", "seal")}
    assert {key: manifest.document[key] for key in kept} == {key: told[key] for key in kept}


def test_a_session_gives_values_and_plain_json() -> None:
    session = load(OLD)
    assert isinstance(session.run_folder.manifest, Manifest)
    assert session.manifest == session.run_folder.manifest.document
    assert session.manifest["method"]["merge"] == session.policy


def test_readers_go_by_attributes() -> None:
    """Keys of a manifest stand in what checks it and makes values of it, and nowhere else."""
    doors = {"manifest.py", "manifest_check.py", "engine_facts.py", "reading.py", "writing.py"}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path.name in doors or path.parent.name == "tasks" or path.name == "inputs.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            inner = node.value if isinstance(node, ast.Subscript) else None
            name = getattr(inner, "attr", getattr(inner, "id", None))
            if name == "manifest":
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not wrong
