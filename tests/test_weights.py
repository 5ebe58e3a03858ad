"""Checkpoints load safely, strictly and finite, or say in one line why not."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from atm_export.errors import WeightsError
from atm_export.model.weights import load_strictly, randomize, read_checkpoint, state_digest


@pytest.fixture
def layer() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    randomize(module)
    return module


def test_safetensors_and_every_wrapping_of_pth_load_alike(layer: nn.Module, tmp_path: Path) -> None:
    state = layer.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "c.pth")
    torch.save({"epoch": 3, "state_dict_ema": state}, tmp_path / "d.pth.tar")
    torch.save({"state_dict": state}, tmp_path / "e.pt")
    for path in sorted(tmp_path.iterdir()):
        fresh = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        load_strictly(fresh, read_checkpoint(path), path.name)
        assert state_digest(fresh) == state_digest(layer), path.name


def test_half_precision_is_cast_to_fp32(layer: nn.Module, tmp_path: Path) -> None:
    torch.save({k: v.half() for k, v in layer.state_dict().items()}, tmp_path / "half.pth")
    tensors = read_checkpoint(tmp_path / "half.pth")
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_another_architecture_names_keys_and_shapes(layer: nn.Module) -> None:
    tensors = {"0.weight": torch.ones(4, 5), "0.bias": torch.ones(4), "extra": torch.ones(1)}
    with pytest.raises(WeightsError) as caught:
        load_strictly(layer, tensors, "file.pth")
    text = str(caught.value)
    assert text.startswith("file.pth belongs to another architecture")
    assert "missing 1.weight, 1.bias" in text
    assert "unexpected extra" in text
    assert "0.weight is (4, 5), the model has (4, 3)" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(layer: nn.Module, value: float) -> None:
    tensors = {k: v.clone() for k, v in layer.state_dict().items()}
    tensors["0.weight"][1, 2] = value
    with pytest.raises(WeightsError, match=r"'0\.weight' has 1 NaN or infinite"):
        load_strictly(layer, tensors, "file.pth")


def test_damaged_files_give_one_line(layer: nn.Module, tmp_path: Path) -> None:
    save_file(layer.state_dict(), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    torch.save(layer.state_dict(), tmp_path / "whole.pth")
    archive = (tmp_path / "whole.pth").read_bytes()
    broken = {
        "short.safetensors": whole[:-7],
        "empty.safetensors": b"",
        "text.safetensors": b"hello, this is text and no header",
        "short.pth": archive[: len(archive) // 2],
        "empty.pth": b"",
        "text.pth": b"hello",
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError) as caught:
            read_checkpoint(tmp_path / name)
        assert name in str(caught.value)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(WeightsError, match="refused"):
        read_checkpoint(tmp_path / "code.pth")


def test_files_without_tensors_are_refused(tmp_path: Path) -> None:
    for name, content in {"list.pth": [1, 2], "text.pth": {"a": "b"}, "none.pth": {}}.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(WeightsError, match="no weights file"):
        read_checkpoint(tmp_path / "absent.pth")


def test_random_weights_are_reproducible() -> None:
    digests = set()
    for _ in range(2):
        module = nn.Linear(5, 6)
        randomize(module)
        digests.add(state_digest(module))
    assert len(digests) == 1
