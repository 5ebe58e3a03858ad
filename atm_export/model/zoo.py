"""Build a model by its spec: the families that are registered, in one place."""

from __future__ import annotations

from atm_export.config import ModelSpec
from atm_export.errors import UnsupportedModelError
from atm_export.model import demo, vit  # noqa: F401  (each registers its family)
from atm_export.model.backbone import LoadedModel, families

LARGEST = 2**31 - 2**26  # protobuf's limit, less room for the graph itself

MOST_TOKENS = 4096


def load_model(spec: ModelSpec) -> LoadedModel:
    """The model with its weights; errors name the file, key or setting at fault."""
    if spec.config.family not in families:
        raise UnsupportedModelError(
            f"{spec.name} needs the model family '{spec.config.family}', which this version does "
            f"not have yet; available: {', '.join(families)}"
        )
    model = families[spec.config.family](spec)
    size = sum(tensor.numel() * 4 for tensor in model.backbone.state_dict().values())
    if size > LARGEST:
        raise UnsupportedModelError(
            f"{spec.name} has {size / 2**30:.1f} GiB of weights; an ONNX file ends at 2 GiB, and "
            "weights beside the file are not written by this version"
        )
    tokens = model.backbone.grid[0] * model.backbone.grid[1] + model.backbone.prefix
    if tokens > MOST_TOKENS:
        raise UnsupportedModelError(
            f"{spec.name} has {tokens} tokens, and sort keys hold {MOST_TOKENS}; "
            "give a smaller --image-size"
        )
    return model
