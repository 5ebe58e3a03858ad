"""A family is one file and one YAML: a toy one, registered here, is exported and proven."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from atm_export.choice import Choice
from atm_export.config import ModelSpec, load_model_config, model_names
from atm_export.errors import UnsupportedModelError
from atm_export.model.backbone import Backbone, BlockParts, LoadedModel, families
from atm_export.model.flops import linear_weights, module_macs, unmerged_gmacs
from atm_export.model.published import imagenet_preprocessing, load_weights, take_apart
from atm_export.model.zoo import load_model
from atm_export.pipeline import export
from atm_export.resolve import resolve
from tests.test_timm_models import counted_gmacs

TOY_YAML = """
family: toy
architecture: toy
proportional: false
default_preset: half
presets:
  half: {alpha: 0.5, beta: 0.05, theta_min: 0.3}
"""


class Toy(Backbone):
    """Convolutions, two learnt tokens in front, two blocks, the maximum over patch tokens."""

    prefix = 2
    head_rows = None
    proportional = False
    image_size = (32, 32)
    grid = (8, 8)
    classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 24, 2, 2))
        self.latent = nn.Parameter(torch.zeros(1, 2, 24))
        self.blocks = nn.ModuleList(Block(24, 2) for _ in range(2))
        self.classifier = nn.Linear(24, self.classes)

    def embed(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        return torch.cat([self.latent.expand(x.shape[0], -1, -1), x], dim=1)

    def parts(self) -> list[BlockParts]:
        return [take_apart(block) for block in self.blocks]

    def head(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        return self.classifier(tokens[:, 2:].amax(dim=1))

    def plain(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.head(x, None)

    def stem_gmacs(self) -> float:
        return module_macs(self.stem, torch.zeros(1, 3, 32, 32)) / 1e9

    def head_macs(self, tokens: Tensor) -> Tensor:
        return torch.full_like(tokens, linear_weights(self.classifier))


def build_toy(spec: ModelSpec) -> LoadedModel:
    backbone = Toy().eval().requires_grad_(False)
    facts = load_weights(backbone, spec)
    return LoadedModel(spec.name, backbone, imagenet_preprocessing(spec.config, (32, 32)), facts)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one YAML and the one registration."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.yaml").write_text(TOY_YAML)
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path / "configs"))
    families.add("toy", build_toy)
    yield
    families.remove("toy")


@pytest.mark.usefixtures("toy")
def test_it_is_exported_and_proven(tmp_path: Path) -> None:
    assert "toy" in model_names()
    config = resolve(Choice(model="toy", weights="random", trace=True))
    outcome = export(config, tmp_path / "out", benchmark=False)
    report = outcome.report
    assert report["parity"]["proven"] and report["parity"]["comparisons"] >= 53
    assert report["tokens"]["mean_after_block"][0] < 64
    assert report["gflops"]["mean"] < report["gflops"]["unmerged"]
    names = [out.name for out in onnx.load(tmp_path / "out" / "model.onnx").graph.output]
    assert names == ["logits", "tokens_per_block", "patch_to_token"]


@pytest.mark.usefixtures("toy")
def test_its_multiply_adds_are_counted() -> None:
    model = load_model(ModelSpec(name="toy", config=load_model_config("toy"), weights="random"))
    assert unmerged_gmacs(model.backbone) == pytest.approx(counted_gmacs(model.backbone), rel=1e-9)


def test_a_family_without_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.yaml").write_text(TOY_YAML)
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path))
    with pytest.raises(UnsupportedModelError, match="needs the model family 'toy'"):
        load_model(ModelSpec(name="toy", config=load_model_config("toy"), weights="random"))
