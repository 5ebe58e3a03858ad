"""Golden vectors: small, deterministic, the reference's own numbers, readable by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from atm_export.choice import Choice
from atm_export.config import ModelSpec
from atm_export.errors import RunFolderError
from atm_export.inputs import normalize
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.prove.golden_vectors import MOST_BYTES, golden_vectors, scene
from atm_export.prove.margins import trace_margin
from atm_export.prove.tolerances import MARGIN
from atm_export.resolving import resolve
from atm_export.runs.reading import open_run
from atm_export.runs.tensors import packed, unpacked
from tests.tiny import planned


def test_the_file_is_what_safetensors_reads(demo_folder: Path) -> None:
    path = demo_folder / "golden.safetensors"
    ours, theirs = unpacked(path.read_bytes(), str(path)), load_file(path)
    assert sorted(ours) == sorted(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype and (array == theirs[name]).all()
        assert not array.flags.writeable
    assert path.stat().st_size < 2_000_000 and MOST_BYTES < 2_000_000


def test_they_are_the_references_and_deterministic(demo_folder: Path) -> None:
    model = load_model(ModelSpec(name="demo", config=load_model_config("demo")))
    config = resolve(Choice(model="demo"))
    plan = planned(config.method, 12, pooled=False, proportional=True)
    data, facts = golden_vectors(model, plan)
    assert data == (demo_folder / "golden.safetensors").read_bytes()
    assert facts == open_run(demo_folder).manifest.document["golden"]
    arrays = unpacked(data, "golden")
    assert facts["images"] == len(arrays["images"]) == 4
    for pixels, logits in zip(arrays["images"], arrays["logits"], strict=True):
        image = torch.from_numpy(normalize(pixels[None], model.preprocessing))
        trace = run_reference(model.backbone, plan, image)
        assert trace_margin(trace) >= MARGIN
        assert np.array_equal(trace.outputs["logits"][0].numpy(), logits)


def test_scenes_are_the_same_everywhere_and_differ() -> None:
    one, two = np.asarray(scene((40, 30), 1)), np.asarray(scene((40, 30), 2))
    assert one.shape == (30, 40, 3) and (one != two).any()
    assert (one == np.asarray(scene((40, 30), 1))).all()


def test_damaged_tensor_files_are_refused() -> None:
    whole = packed({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.uint8)})
    assert unpacked(whole, "x")["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    broken = [whole[:n] for n in range(len(whole) - 1)]
    broken += [whole.replace(b"F32", b"F99"), whole.replace(b"[2,3]", b"[2,4]"), b"\xff" * 40]
    for data in broken:
        with pytest.raises(RunFolderError, match="no safetensors"):
            unpacked(data, "x")
