"""From a user's choice to one resolved RunConfig: presets looked up, overrides applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from atm_export.bounds import whole
from atm_export.choice import Choice
from atm_export.config import ModelConfig, ModelSpec, RunConfig
from atm_export.errors import ConfigError, DataError
from atm_export.imagefiles import is_folder
from atm_export.methods import USUAL_METHOD, methods
from atm_export.methods.base import MergePolicy, MethodSettings
from atm_export.methods.flat import known_settings, required_settings
from atm_export.methods.given import parse_settings, settings_of
from atm_export.methods.sparse import AUTO
from atm_export.model_configs import file_name, find_preset, load_model_config, nearest_preset
from atm_export.settings import validated
from atm_export.uses import is_given, refuse_in_vain, spelled

# Options that are a short form of --set.
SHORT = (
    *("alpha", "beta", "theta_min", "split", "merge_blocks"),
    *("r", "schedule", "proportional", "merge"),
)
SHARED = ("merge", "proportional")  # settings with which a preset is still the same point


def resolve(choice: Choice) -> RunConfig:
    """The RunConfig of a choice; ConfigError names the option at fault."""
    model = _with_options(load_model_config(choice.model), choice.option)
    choice = replace(choice, method=_method_name(choice, model))
    refuse_in_vain(choice, model)
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
            "task": choice.task,
            "normalize": choice.normalize,
            "pool": choice.pool,
            "layers": choice.layers,
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


@dataclass(frozen=True)
class Budget:
    """1e9 multiply-adds an image that a method's settings have yet to meet on images
    (`measure.budget`); fixed: those that were given."""

    gflops: float
    fixed: frozenset[str]


def budget_of(choice: Choice) -> Budget | None:
    """What is left to find where no preset has it; ConfigError where nothing says how much."""
    config = load_model_config(choice.model)
    choice = replace(choice, method=_method_name(choice, config))
    given = _given(choice, str(choice.method))
    if choice.gflops is not None:
        by_preset = _presets_choose(choice, config)
        return None if by_preset else Budget(choice.gflops, frozenset(given))
    if given.get("merge_blocks") != AUTO or given.keys() & {"theta_min", "r"}:
        return None
    preset = config.presets.get(choice.preset or config.default_preset or "")
    if preset is None or preset.method != choice.method or preset.gflops is None:
        raise ConfigError("--merge-blocks auto looks for thresholds that cost --gflops: give it")
    return Budget(preset.gflops, frozenset(given))


def _presets_choose(choice: Choice, config: ModelConfig) -> bool:
    """Whether --gflops means one of the presets as it is."""
    own = (p for p in config.presets.values() if p.method == choice.method and not p.fitted)
    return not is_given(choice, "merge_blocks") and any(preset.gflops for preset in own)


def _method_name(choice: Choice, config: ModelConfig) -> str:
    """The method: as given, else that of the preset; ConfigError where they differ."""
    preset = config.presets.get(choice.preset or "")
    default = config.presets.get(config.default_preset or "")
    if choice.method is None:
        chosen = preset or (None if choice.preset else default)
        return USUAL_METHOD if chosen is None else chosen.method
    methods[choice.method]
    if preset is not None and choice.method != preset.method:
        raise ConfigError(
            f"--preset {choice.preset} is one of --method {preset.method}, not of {choice.method}"
        )
    return choice.method


def _method(choice: Choice, config: ModelConfig) -> MethodSettings:
    """The settings of the chosen method: a preset's, and what was given on top."""
    name = str(choice.method)
    given = _given(choice, name)
    required = required_settings(methods[name].settings)
    complete = bool(required) and given.keys() >= set(required)
    preset = _preset_name(choice, config, required, complete)
    base = {} if choice.gflops is None else methods[name].usual
    if preset is not None:
        base = find_preset(preset, choice.model, config).settings
    if missing := [each for each in required if each not in {**base, **given}]:
        raise ConfigError(
            f"method {name} needs {', '.join(missing)}: give --preset, or --set NAME=VALUE for each"
        )
    same = given.keys() <= set(SHARED)
    return settings_of(name, {**base, **given}, preset=preset if same else None)


def _given(choice: Choice, method: str) -> dict[str, Any]:
    """Settings by --set and by options that are short for it; ConfigError for one that is both."""
    given = parse_settings(choice.settings, method)
    known = known_settings(methods[method].settings)
    short = [name for name in SHORT if name in known and is_given(choice, name)]
    if twice := [name for name in short if name in given]:
        name = twice[0]
        raise ConfigError(f"{spelled(name)} and --set {name}=... say the same thing; give one")
    values = {name: getattr(choice, name) for name in short}
    if "r" in values:
        values["r"] = _numbers(values["r"])
    return values | given


def _preset_name(
    choice: Choice, config: ModelConfig, required: tuple[str, ...], complete: bool
) -> str | None:
    """The preset that is named, that --gflops finds, or the model's usual one where it is one of
    the method and something is left to say."""
    named = [option for option in ("preset", "gflops") if is_given(choice, option)]
    if len(named) == 2:
        raise ConfigError("--preset and --gflops both choose an operating point; give one")
    if named and complete:
        names = ", ".join(spelled(name) for name in required)
        raise ConfigError(f"{spelled(named[0])} and all of {names}; give one of both")
    if choice.gflops is not None and _presets_choose(choice, config):
        return nearest_preset(choice.gflops, choice.model, config, str(choice.method))
    usual = config.default_preset
    if choice.preset is not None or usual is None or complete:
        return choice.preset
    return usual if config.presets[usual].method == choice.method else None


def _with_options(config: ModelConfig, given: tuple[str, ...]) -> ModelConfig:
    """The config with `name=value` options of its architecture on top; values are YAML."""
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise ConfigError(f"--option {text}: give NAME=VALUE, for example aux_head=always")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--option {text}: {value} is no value") from None
    if not options:
        return config
    _refuse_options(config, options)
    return config.model_copy(update={"options": {**config.options, **options}})


def _refuse_options(config: ModelConfig, given: Mapping[str, Any]) -> None:
    """ConfigError for options that the family does not take from a command line."""
    from atm_export.model.zoo import check_options

    check_options(config, given)


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
    parts = [file_name(config.model.name), label]
    if method.policy not in (None, MergePolicy.ADAPTIVE):
        parts.append(method.policy.value)
    if config.model.image_size:
        parts.append(str(config.model.image_size))
    if config.model.task != "auto":
        parts.append(config.model.task)
    if config.model.normalize:
        parts.append("normalized")
    if config.model.pool:
        parts.append(config.model.pool)
    if config.model.layers:
        parts.append("layers-" + ".".join(map(str, config.model.layers)))
    usual = load_model_config(config.model.name).options
    for name, value in config.model.config.options.items():
        if usual.get(name) != value:
            parts.append(f"{name}-{value}")
    return Path("build") / "-".join(parts)
