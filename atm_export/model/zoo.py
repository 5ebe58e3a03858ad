"""Build a model by its spec; a family's file is imported when a config first names it."""

from __future__ import annotations

from importlib import import_module

from atm_export.config import ModelSpec
from atm_export.errors import UnsupportedModelError
from atm_export.model import family_module
from atm_export.model.backbone import Family, LoadedModel, families, refuse_large

MOST_TOKENS = 4096


def load_model(spec: ModelSpec) -> LoadedModel:
    """The model with its weights; errors name the file, key or setting at fault."""
    model = _family(spec)(spec)
    refuse_large(sum(t.numel() for t in model.backbone.state_dict().values()), spec.name)
    tokens = model.backbone.tokens
    if tokens > MOST_TOKENS:
        raise UnsupportedModelError(
            f"{spec.name} has {tokens} tokens, and sort keys hold {MOST_TOKENS}; "
            "give a smaller --image-size"
        )
    return model


def _family(spec: ModelSpec) -> Family:
    name = spec.config.family
    if name not in families and (module := family_module(name)):
        import_module(module)
    if name not in families:
        raise UnsupportedModelError(
            f"{spec.name} needs the model family '{name}', which this version does not have; "
            f"a family is a file of atm_export/model that registers its name"
        )
    return families[name]
