"""A toy task: one vector an image, its direction counts; and a toy family that answers it."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer

from atm_export.config import ModelSpec
from atm_export.model.backbone import LoadedModel, families
from atm_export.model.published import imagenet_preprocessing, load_weights
from atm_export.model.vit import TimmBackbone
from atm_export.tasks import tasks
from atm_export.tasks.base import BATCH, OutputSpec, Sizes, Task, Tolerance

SIZE = 32
YAML = """
family: pooled
architecture: pooled
proportional: false
default_preset: half
presets:
  half: {alpha: 0.5, beta: 0.05, theta_min: 0.3}
"""


class Vector(Task):
    """What an image is like: the closer in direction, the more alike."""

    name = "vector"

    def outputs(self, model: Sizes) -> tuple[OutputSpec, ...]:
        return (OutputSpec("vector", (BATCH, model.classes), "cosine", FP32),)


FP32 = Tolerance(
    1e-8,
    "FP32 sums in another order turn a vector by about 5e-6, one wrong merge by 1e-3 or more; "
    "1 - cosine is half the square of that",
    noise=16.0,
    most=1e-6,
    picture=1e-5,
)


class Pooled(TimmBackbone):
    """A ViT without a classifier: the mean over its patches."""

    task = Vector.name


def build_pooled(spec: ModelSpec) -> LoadedModel:
    model = VisionTransformer(
        img_size=SIZE, patch_size=4, embed_dim=48, depth=4, num_heads=3, num_classes=0,
        global_pool="avg",
    )  # fmt: skip
    facts = load_weights(model, spec)
    how = imagenet_preprocessing(spec.config, (SIZE, SIZE))
    return LoadedModel(spec.name, Pooled(model, spec.name, False), how, facts)


tasks.add(Vector.name, Vector())
families.add("pooled", build_pooled)
