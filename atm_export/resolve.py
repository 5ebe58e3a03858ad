"""From a user's choice to one resolved RunConfig: presets looked up, overrides applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from atm_export.bounds import whole
from atm_export.config import (
    ModelConfig,
    ModelSpec,
    RunConfig,
    find_preset,
    load_model_config,
    method_settings,
    nearest_preset,
    validated,
)
from atm_export.errors import ConfigError, DataError, unknown_name
from atm_export.imagefiles import is_folder
from atm_export.methods import methods
from atm_export.methods.atm import OperatingPoint
from atm_export.methods.base import MergePolicy

TIMM_OPTIONS = ("global_pool", "num_classes")  # timm takes many more, some of which load files


@dataclass(frozen=True)
class Choice:
    """The main command's options; None: not given."""

    model: str
    weights: str = "pretrained"
    image_size: int | None = None
    option: tuple[str, ...] = ()
    method: str = "atm"
    preset: str | None = None
    gflops: float | None = None
    alpha: float | None = None
    beta: float | None = None
    theta_min: float | None = None
    split: int | None = None
    r: str | None = None
    schedule: str = "constant"
    proportional: bool | None = None
    merge: str = "adaptive"
    calibrate: str | None = None
    uint8_input: bool = False
    trace: bool = False
    opset: int = 20
    images: str | None = None


@dataclass(frozen=True)
class Use:
    """Options that mean something in some choices alone."""

    options: tuple[str, ...]
    belongs_to: str
    there: Callable[[Choice], bool]


USES = (
    Use(
        ("preset", "gflops", "alpha", "beta", "theta_min", "split", "merge"),
        "--method atm",
        lambda choice: choice.method == "atm",
    ),
    Use(("r", "schedule"), "--method tome", lambda choice: choice.method == "tome"),
    Use(("schedule",), "an -r of one number", lambda choice: "," not in (choice.r or "")),
    Use(
        ("proportional",),
        "--method atm or tome",
        lambda choice: choice.method != "none",
    ),
    Use(("calibrate",), "--merge frozen", lambda choice: choice.merge == MergePolicy.FROZEN),
)


def _refuse_in_vain(choice: Choice) -> None:
    """ConfigError for options that were given and would be ignored."""
    usual = {field.name: field.default for field in fields(Choice)}
    for use in USES:
        given = [name for name in use.options if getattr(choice, name) != usual[name]]
        if given and not use.there(choice):
            names = [f"{'-' if name == 'r' else '--'}{name.replace('_', '-')}" for name in given]
            verb = "belongs" if len(names) == 1 else "belong"
            raise ConfigError(f"{', '.join(names)} {verb} to {use.belongs_to}")


def resolve(choice: Choice) -> RunConfig:
    """The RunConfig of a choice; ConfigError names the option at fault."""
    _refuse_in_vain(choice)
    model = _with_options(load_model_config(choice.model), choice.option)
    for option, folder in (("--images", choice.images), ("--calibrate", choice.calibrate)):
        if folder is not None and not (folder.strip() and is_folder(Path(folder))):
            raise DataError(f"{option} {folder}: no such folder")
    spec = validated(
        ModelSpec,
        {
            "name": choice.model,
            "config": model,
            "weights": choice.weights,
            "image_size": choice.image_size,
        },
        "model",
    )
    values: dict[str, Any] = {
        "name": choice.method,
        "merge": choice.merge,
        "r": _numbers(choice.r),
        "schedule": choice.schedule,
        "proportional": choice.proportional,
        **_operating_point(choice, model),
    }
    known = methods[choice.method].settings.model_fields
    values = {name: value for name, value in values.items() if name in known}
    settings = {
        "model": spec,
        "method": method_settings(values),
        "uint8_input": choice.uint8_input,
        "trace": choice.trace,
        "opset": whole(choice.opset, "--opset", 20, 23),
        "calibrate": choice.calibrate,
        "images": choice.images,
    }
    config: RunConfig = validated(RunConfig, settings, "export")
    return config


def _with_options(config: ModelConfig, given: tuple[str, ...]) -> ModelConfig:
    """The config with `name=value` options of its architecture on top; values are YAML."""
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise ConfigError(f"--option {text}: give NAME=VALUE, for example aux_head=always")
        if config.family == "demo":
            raise ConfigError(f"--option {text}: the demo has no options")
        if config.family == "timm" and name not in TIMM_OPTIONS:
            raise unknown_name("option of timm models", name, TIMM_OPTIONS)
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--option {text}: {value} is no value") from None
    if not options:
        return config
    return config.model_copy(update={"options": {**config.options, **options}})


def _operating_point(choice: Choice, config: ModelConfig) -> dict[str, Any]:
    given = {
        name: value
        for name in OperatingPoint.model_fields
        if (value := getattr(choice, name)) is not None
    }
    chosen = {"--preset": choice.preset, "--gflops": choice.gflops}
    named = [option for option, value in chosen.items() if value is not None]
    if choice.method != "atm":
        return {}
    if len(named) == 2:
        raise ConfigError("--preset and --gflops both choose an operating point; give one")
    name = choice.preset
    if choice.gflops is not None:
        name = nearest_preset(choice.gflops, choice.model, config)
    complete = {"alpha", "beta", "theta_min"} <= given.keys()
    if named and complete:
        raise ConfigError(f"{named[0]} and all of --alpha, --beta, --theta-min; give one of both")
    if name is None and not complete:
        name = config.default_preset
    base: dict[str, Any] = {}
    if name is not None:
        base = find_preset(name, choice.model, config).point.model_dump()
    point = validated(OperatingPoint, base | given, "operating point")
    return {"point": point, "preset": name if base and not given else None}


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"-r {text}: give whole numbers, one or one a block (8 or 16,14,...)"
        ) from None


def default_out(config: RunConfig) -> Path:
    """build/<model>-<preset>, with what differs from the preset in the name."""
    method = config.method
    label = methods[method.name].label(method)
    parts = [config.model.name.replace(":", "_").replace("/", "_"), label]
    if method.policy not in (None, MergePolicy.ADAPTIVE):
        parts.append(method.policy.value)
    if config.model.image_size:
        parts.append(str(config.model.image_size))
    usual = load_model_config(config.model.name).options
    for name, value in config.model.config.options.items():
        if usual.get(name) != value:
            parts.append(f"{name}-{value}")
    return Path("build") / "-".join(parts)
