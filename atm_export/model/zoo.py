"""Build a model by its spec; a family's file is imported when a config first names it."""

from __future__ import annotations

from atm_export.config import ModelSpec
from atm_export.errors import UnsupportedModelError
from atm_export.model import SHIPPED
from atm_export.model.backbone import Family, LoadedModel, families

MOST_TOKENS = 4096


def load_model(spec: ModelSpec) -> LoadedModel:
    """The model with its weights; errors name the file, key or setting at fault."""
    model = _family(spec)(spec)
    tokens = model.backbone.tokens
    if tokens > MOST_TOKENS:
        raise UnsupportedModelError(
            f"{spec.name} has {tokens} tokens, and sort keys hold {MOST_TOKENS}; "
            "give a smaller --image-size"
        )
    return model


def _family(spec: ModelSpec) -> Family:
    name = spec.config.family
    _register_shipped(name)
    if name not in families:
        raise UnsupportedModelError(
            f"{spec.name} needs the model family '{name}', which neither this version nor a plugin "
            f"has; it has: {', '.join(SHIPPED)}"
        )
    return families[name]


def _register_shipped(family: str) -> None:
    """A family's file registers it when it is imported, and is imported when it is asked for."""
    if family == "demo":
        from atm_export.model import demo  # noqa: F401
    elif family == "lvvit":
        from atm_export.model import lvvit  # noqa: F401
    elif family == "t2t":
        from atm_export.model import t2t  # noqa: F401
    elif family == "timm":
        from atm_export.model import vit  # noqa: F401
