"""Build a model by its spec; a family's file is imported when a config first names it."""

from __future__ import annotations

from collections.abc import Iterable

from atm_export.config import ModelConfig, ModelSpec
from atm_export.errors import ConfigError, UnsupportedModelError, unknown_name
from atm_export.model import SHIPPED
from atm_export.model.backbone import Family, Limited, LoadedModel, families
from atm_export.tasks.dense import Dense
from atm_export.tasks.embed import Embed

MOST_TOKENS = 4096


def load_model(spec: ModelSpec) -> LoadedModel:
    """The model with its weights; errors name the file, key or setting at fault."""
    model = _family(spec.name, spec.config.family)(spec)
    task = model.backbone.task
    if spec.task in (Embed.name, Dense.name) and spec.task != task:
        raise ConfigError(f"--task {spec.task}: {spec.name} has the task '{task}', and no other")
    for option in ("normalize", "pool"):
        if getattr(spec, option) and task != Embed.name:
            raise ConfigError(
                f"--{option} belongs to --task embed, and {spec.name} has the task '{task}'"
            )
    tokens = model.backbone.tokens
    if tokens > MOST_TOKENS:
        raise UnsupportedModelError(
            f"{spec.name} has {tokens} tokens, and sort keys hold {MOST_TOKENS}; "
            "give a smaller --image-size"
        )
    return model


def check_options(config: ModelConfig, names: Iterable[str]) -> None:
    """ConfigError for options of an architecture that a command line may not give."""
    family = _family(config.architecture, config.family)
    if not isinstance(family, Limited):
        return  # it refuses what it does not know when it builds
    for name in names:
        if not family.options:
            raise ConfigError(f"--option {name}=...: {family.title} has no options")
        if name not in family.options:
            raise unknown_name(f"option of {family.title}", name, family.options)


def _family(model: str, name: str) -> Family:
    _register_shipped(name)
    if name not in families:
        raise UnsupportedModelError(
            f"{model} needs the model family '{name}', which neither this version nor a plugin "
            f"has; it has: {', '.join(SHIPPED)}"
        )
    return families[name]


def _register_shipped(family: str) -> None:
    """A family's file registers it when it is imported, and is imported when it is asked for."""
    if family == "demo":
        from atm_export.model import demo  # noqa: F401
    elif family == "huggingface":
        from atm_export.model.huggingface import family as huggingface  # noqa: F401
    elif family == "lvvit":
        from atm_export.model import lvvit  # noqa: F401
    elif family == "t2t":
        from atm_export.model import t2t  # noqa: F401
    elif family == "timm":
        from atm_export.model import vit  # noqa: F401
    elif family == "torchvision":
        from atm_export.model import torchvision_vit  # noqa: F401
