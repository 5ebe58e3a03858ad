"""A toy input: one channel, 32 x 48; and a toy family in plain torch that takes it."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from atm_export.config import ModelSpec
from atm_export.inputs import GREY, Preprocessing
from atm_export.model.backbone import Backbone, BlockParts, LoadedModel, families
from atm_export.model.flops import linear_weights, module_macs
from atm_export.model.published import load_weights, overridden, take_apart

SIZE = (32, 48)
PATCH = 8
WIDTH = 24
YAML = """
family: grey
architecture: grey
proportional: false
default_preset: half
presets:
  half: {alpha: 0.5, beta: 0.05, theta_min: 0.3}
"""


class Grey(Backbone):
    """Patches of a grey picture behind a class token, two blocks, a classifier."""

    prefix = 1
    head_rows = 1
    proportional = False
    image_size = SIZE
    channels = GREY
    grid = (SIZE[0] // PATCH, SIZE[1] // PATCH)
    classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(self.channels, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.zeros(1, self.tokens, WIDTH))
        self.blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.classifier = nn.Linear(WIDTH, self.classes)

    def embed(self, image: Tensor) -> Tensor:
        patches = self.stem(image).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(image.shape[0], -1, -1), patches], dim=1) + self.places

    def parts(self) -> list[BlockParts]:
        return [take_apart(block) for block in self.blocks]

    def head(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        return self.classifier(self.norm(tokens[:, 0]))

    def plain(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.head(x, None)

    def stem_gmacs(self) -> float:
        return module_macs(self.stem, self.blank()) / 1e9

    def head_macs(self, tokens: Tensor) -> Tensor:
        return torch.full_like(tokens, linear_weights(self.classifier))


def build_grey(spec: ModelSpec) -> LoadedModel:
    backbone = Grey().eval().requires_grad_(False)
    facts = load_weights(backbone, spec)
    values = {"crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.45,), "std": (0.22,)}
    how = Preprocessing(size=SIZE, **overridden(values, spec.config))
    return LoadedModel(spec.name, backbone, how, facts)


families.add("grey", build_grey)
