"""A model family in one file: convolutions, two learnt tokens, two blocks, a maximum."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from atm_export.config import ModelSpec
from atm_export.model.backbone import Backbone, BlockParts, LoadedModel, families
from atm_export.model.flops import linear_weights, module_macs
from atm_export.model.published import imagenet_preprocessing, load_weights, take_apart

YAML = """
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


def register() -> None:
    """What an entry point of the group `atm_export.plugins` names."""
    families.add("toy", build_toy)
