"""From a user's choice to one resolved RunConfig: presets looked up, overrides applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from atm_export.bounds import whole
from atm_export.choice import Choice
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
from atm_export.methods.atm import Atm, OperatingPoint
from atm_export.methods.base import MergePolicy, MethodSettings
from atm_export.methods.given import parse_settings

USUAL_METHOD = Atm.name
TIMM_OPTIONS = ("global_pool", "num_classes")  # timm takes many more, some of which load files


@dataclass(frozen=True)
class Use:
    """Options that mean something in some choices alone."""

    options: tuple[str, ...]
    belongs_to: str
    there: Callable[[Choice], bool]


USES = (
    Use(
        ("gflops", "alpha", "beta", "theta_min", "split", "merge"),
        "--method atm",
        lambda choice: _takes(choice, "point"),
    ),
    Use(("r", "schedule"), "--method tome", lambda choice: _takes(choice, "r")),
    Use(("schedule",), "an -r of one number", lambda choice: "," not in (choice.r or "")),
    Use(
        ("proportional",),
        "--method atm or tome",
        lambda choice: _takes(choice, "proportional"),
    ),
    Use(("calibrate",), "--merge frozen", lambda choice: _policy(choice) == MergePolicy.FROZEN),
)


def _takes(choice: Choice, field: str) -> bool:
    """Whether the chosen method has such a setting."""
    method = methods[choice.method or USUAL_METHOD]
    return field in method.settings.model_fields and field not in method.ignores


def _policy(choice: Choice) -> str:
    """Who shares r, by option or by --set."""
    given = parse_settings(choice.settings, choice.method or USUAL_METHOD)
    return str(given.get("merge", choice.merge))


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
    model = _with_options(load_model_config(choice.model), choice.option)
    choice = replace(choice, method=_method_name(choice, model))
    _refuse_in_vain(choice)
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
    settings = {
        "model": spec,
        "method": _method(choice, model),
        "uint8_input": choice.uint8_input,
        "trace": choice.trace,
        "opset": whole(choice.opset, "--opset", 20, 23),
        "external_data": choice.external_data,
        "calibrate": choice.calibrate,
        "images": choice.images,
    }
    config: RunConfig = validated(RunConfig, settings, "export")
    return config


def _method_name(choice: Choice, config: ModelConfig) -> str:
    """The method: as given, else that of the preset; ConfigError where they differ."""
    preset = config.presets.get(choice.preset or "")
    default = config.presets.get(config.default_preset or "")
    if choice.method is None:
        chosen = preset or (None if choice.preset else default)
        return USUAL_METHOD if chosen is None else chosen.method_name
    methods[choice.method]
    own = choice.method if preset is None else preset.method_name
    if choice.method != own:
        raise ConfigError(
            f"--preset {choice.preset} is one of --method {own}, not of {choice.method}"
        )
    return choice.method


def _method(choice: Choice, config: ModelConfig) -> MethodSettings:
    """The settings of the chosen method: a preset's, and what was given on top."""
    name = str(choice.method)
    known = methods[name].settings.model_fields
    flags = {
        "merge": choice.merge,
        "r": _numbers(choice.r),
        "schedule": choice.schedule,
        "proportional": choice.proportional,
    }
    usual = {field.name: field.default for field in fields(Choice)}
    values: dict[str, Any] = {
        key: value for key, value in flags.items() if key in known and value != usual[key]
    }
    given = parse_settings(choice.settings, name)
    _refuse_twice(choice, given)
    if "point" in known:
        values |= _operating_point(choice, config, given)
    else:
        values = _preset_settings(choice, config, {*values, *given}) | values
    named = {key: value for key, value in given.items() if key in known}
    return method_settings({"name": name, **values, **named})


def _refuse_twice(choice: Choice, given: Mapping[str, Any]) -> None:
    """ConfigError for a setting that has an option of its own and is given by both."""
    usual = {field.name: field.default for field in fields(Choice)}
    for name in given:
        if name in usual and getattr(choice, name) != usual[name]:
            option = "-r" if name == "r" else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} and --set {name}=... say the same thing; give one")


def _preset_settings(choice: Choice, config: ModelConfig, changed: set[str]) -> dict[str, Any]:
    """Settings of a preset of a method that has no operating point; changed: those that were given,
    so that it is no longer the preset."""
    name = choice.preset or _default_preset(choice, config)
    if name is None:
        return {}
    settings = find_preset(name, choice.model, config).method_settings
    return {**settings, "preset": None if changed else name}


def _default_preset(choice: Choice, config: ModelConfig) -> str | None:
    """The model's default preset, where it is one of the chosen method."""
    preset = config.presets.get(config.default_preset or "")
    own = preset is not None and preset.method_name == choice.method
    return config.default_preset if own else None


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


def _operating_point(
    choice: Choice, config: ModelConfig, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """ATM's numbers: a preset's, with those on top that were given by option or by --set."""
    options = {name: getattr(choice, name) for name in OperatingPoint.model_fields}
    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: settings[name] for name in OperatingPoint.model_fields if name in settings}
    chosen = {"--preset": choice.preset, "--gflops": choice.gflops}
    named = [option for option, value in chosen.items() if value is not None]
    if len(named) == 2:
        raise ConfigError("--preset and --gflops both choose an operating point; give one")
    name = choice.preset
    if choice.gflops is not None:
        name = nearest_preset(choice.gflops, choice.model, config)
    complete = {"alpha", "beta", "theta_min"} <= given.keys()
    if named and complete:
        raise ConfigError(f"{named[0]} and all of --alpha, --beta, --theta-min; give one of both")
    if name is None and not complete:
        name = _default_preset(choice, config)
    base: dict[str, Any] = {}
    if name is not None:
        base = find_preset(name, choice.model, config).method_settings["point"]
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
