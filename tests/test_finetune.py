"""tools/finetune.py on the demo's digits: what merging loses comes back, and what was interrupted
goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from atm_export import demo
from tests.runs import run_command

ROOT = Path(__file__).resolve().parents[1]
AGGRESSIVE = ("--method", "evit", "--set", "keep=0.015", "--set", "blocks=1")  # 4 of 197 tokens
GENTLE = ("--augment", "none", "--drop-path", "0", "--lr", "5e-4", "--min-lr", "5e-5")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import finetune

    return finetune


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 digits to train on and 120 to measure with, none of which the demo has seen."""
    folder = tmp_path_factory.mktemp("digits")
    for i, (image, label) in enumerate(zip(*demo.heldout(), strict=True)):
        place = folder / ("val" if i % 3 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i}.png")
    return folder


def run(
    monkeypatch: pytest.MonkeyPatch, tool: ModuleType, images: Path, out: Path, *more: str
) -> int:
    command = ["finetune.py", "demo", "--images", str(images), "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", command)
    return tool.main()


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "finetune.json").read_text(encoding="utf-8"))


def test_accuracy_comes_back_and_the_weights_export(
    tool: ModuleType, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tuned"
    more = (*AGGRESSIVE, *GENTLE, "--epochs", "4", "--batch", "24")
    assert run(monkeypatch, tool, digits, out, *more) == 0
    found = result(out)
    unmerged, merged = (found["start"][name]["hits"] for name in ("unmerged", "merged"))
    tuned = found["epochs"][-1]["merged"]["hits"]
    assert found["start"]["merged"]["of"] == 120
    assert merged <= unmerged - 10
    assert tuned - merged >= (unmerged - merged) / 2
    run_command(
        *("demo", "--weights", out / "weights.safetensors", *AGGRESSIVE),
        *("--out", tmp_path / "run"),
    )
    told = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert told["weights"]["source"] == "weights.safetensors"


def test_what_was_interrupted_goes_on_to_the_same_weights(
    tool: ModuleType, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (*AGGRESSIVE, "--epochs", "3", "--batch", "80", "--drop-path", "0.2")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert run(monkeypatch, tool, digits, whole, *more) == 0
    one_epoch = tool.one_epoch

    def interrupted(training: Any, images: Any, epoch: int, workers: int) -> float:
        if epoch == 1:
            raise KeyboardInterrupt
        return one_epoch(training, images, epoch, workers)

    with monkeypatch.context() as patch:
        patch.setattr(tool, "one_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(patch, tool, digits, parted, *more)
    assert len(result(parted)["epochs"]) == 1
    assert run(monkeypatch, tool, digits, parted, *more) == 0
    for name in ("weights.safetensors", "finetune.json"):
        assert (parted / name).read_bytes() == (whole / name).read_bytes()
    before = (whole / "weights.safetensors").read_bytes()
    assert run(monkeypatch, tool, digits, whole, *more) == 0
    assert (whole / "weights.safetensors").read_bytes() == before


def test_another_training_is_not_gone_on_with(
    tool: ModuleType,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = (*AGGRESSIVE, *GENTLE, "--epochs", "1", "--batch", "120")
    assert run(monkeypatch, tool, digits, tmp_path / "out", *usual) == 0
    capsys.readouterr()
    assert run(monkeypatch, tool, digits, tmp_path / "out", *usual, "--seed", "1") == 7
    assert "holds another training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--batch", "7"), "--batch 7"),
        (("--batch", "1024"), "no batch of 1024"),
        (("--epochs", "0"), "--epochs"),
        (("--min-lr", "1"), "--min-lr"),
        (("--set", "keep=2"), "keep"),
        (("--device", "cuda"), "no GPU"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(
    more: tuple[str, ...],
    told: str,
    tool: ModuleType,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "out"
    assert run(monkeypatch, tool, digits, out, "--method", "evit", *more) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and told in error
    assert not out.exists()


def test_images_without_halves_are_named(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, tool, tmp_path, tmp_path / "out") != 0
    assert "holds train and val" in capsys.readouterr().err
