"""Which options of the main command mean something in which choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from atm_export.choice import Choice
from atm_export.config import ModelConfig
from atm_export.errors import ConfigError
from atm_export.methods import methods
from atm_export.methods.base import MergePolicy
from atm_export.methods.flat import known_settings
from atm_export.methods.given import parse_settings

DEFAULTS = {field.name: field.default for field in fields(Choice)}


@dataclass(frozen=True)
class Use:
    """Options that mean something in some choices alone; there: whether one of them does."""

    options: tuple[str, ...]
    belongs_to: str
    there: Callable[[Choice, ModelConfig, str], bool]


def takes(choice: Choice, config: ModelConfig, setting: str) -> bool:
    """Whether the chosen method has such a setting."""
    method = methods[str(choice.method)]
    return setting in known_settings(method.settings) and setting not in method.ignores


def _costs(choice: Choice, config: ModelConfig, option: str) -> bool:
    """Whether the chosen method can cost more or less."""
    return bool(known_settings(methods[str(choice.method)].settings).keys() - {"proportional"})


def _freezes(choice: Choice, config: ModelConfig, option: str) -> bool:
    """Whether r is fixed by images, by option or by --set."""
    given = parse_settings(choice.settings, str(choice.method))
    return bool(given.get("merge", choice.merge) == MergePolicy.FROZEN)


def _embeds(choice: Choice, config: ModelConfig, option: str) -> bool:
    """Whether it may embed; every token is no embedding."""
    if choice.pool == "none" and choice.task == "embed":
        raise ConfigError(
            "--pool none keeps every token, which is no one vector; give --task dense for a "
            "feature of every patch"
        )
    return choice.task in ("auto", "embed") and choice.pool != "none"


USES = (
    Use(("pool",), "--task embed", _embeds),
    Use(("layers",), "--task dense", lambda choice, *_: choice.task == "dense"),
    Use(("alpha", "beta", "theta_min", "split", "merge"), "--method atm", takes),
    Use(("gflops",), "a method with settings", _costs),
    Use(("merge_blocks",), "--method atm or tome", takes),
    Use(("r", "schedule"), "--method tome", takes),
    Use(("schedule",), "an -r of one number", lambda choice, *_: "," not in (choice.r or "")),
    Use(("proportional",), "--method atm, tome, mctf, pitome or diffrate", takes),
    Use(("calibrate",), "--merge frozen", _freezes),
)


def is_given(choice: Choice, option: str) -> bool:
    """Whether an option says something else than usual."""
    return bool(getattr(choice, option) != DEFAULTS[option])


def spelled(option: str) -> str:
    """An option as the command line has it."""
    return "-r" if option == "r" else f"--{option.replace('_', '-')}"


def refuse_in_vain(choice: Choice, config: ModelConfig) -> None:
    """ConfigError for options that were given and would be ignored."""
    for use in USES:
        vain = [
            name
            for name in use.options
            if is_given(choice, name) and not use.there(choice, config, name)
        ]
        if vain:
            verb = "belongs" if len(vain) == 1 else "belong"
            names = ", ".join(spelled(name) for name in vain)
            raise ConfigError(f"{names} {verb} to {use.belongs_to}")
