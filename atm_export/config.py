"""Frozen, validated settings, and the model configs in `export_configs/`.

Unknown keys and impossible values fail here, with the name of the field.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from atm_export import place
from atm_export.errors import ConfigError, ManifestError, unknown_name
from atm_export.methods import methods
from atm_export.methods.atm import Atm, OperatingPoint
from atm_export.methods.base import MethodSettings
from atm_export.settings import Gflops, Percent, Settings

OTHER_CONFIGS = "set ATM_EXPORT_CONFIGS to a folder of yours"


class Preset(OperatingPoint):
    """A named operating point with what the paper says of it (GFLOPs = 1e9 multiply-adds)."""

    table: str | None = None
    gflops: Gflops | None = None
    top1: Percent | None = None
    fine_tuned: bool = False

    @property
    def point(self) -> OperatingPoint:
        return OperatingPoint(**self.model_dump(include=set(OperatingPoint.model_fields)))

    @property
    def method_name(self) -> str:
        return Atm.name

    @property
    def method_settings(self) -> Mapping[str, Any]:
        """What it sets of its method."""
        return {"point": self.point.model_dump()}


class MethodPreset(Settings):
    """Settings of any method under a name, with what is known of them."""

    method: str
    settings: Mapping[str, Any]
    gflops: Gflops | None = None
    top1: Percent | None = None
    fine_tuned: bool = False

    @model_validator(mode="after")
    def _settings_of_a_method(self) -> MethodPreset:
        method_settings({**self.settings, "name": self.method}, "settings")
        return self

    @property
    def method_name(self) -> str:
        return self.method

    @property
    def method_settings(self) -> Mapping[str, Any]:
        """What it sets of its method."""
        return self.settings


def _preset(values: Any) -> Any:
    """A preset that names its method, or an operating point."""
    if not isinstance(values, Mapping):
        return values
    kind = MethodPreset if "method" in values else Preset
    return validated(kind, values, "preset")


AnyPreset = Annotated[SerializeAsAny[Preset | MethodPreset], BeforeValidator(_preset)]


# Lossless for DeiT-T in table A2, and for ViT-Tiny as measured in the README; others should tune.
DEFAULT_POINT = Preset(alpha=1.0, beta=0.035, theta_min=0.88)


class PaperFigures(Settings):
    """What the paper reports for the unmerged model."""

    gflops: Gflops
    top1: Percent


class MeasuredFigures(Settings):
    """What was measured here: GFLOPs of the unmerged model (linear layers, convolutions, both
    attention products) and, where weights and images were at hand, at the default preset."""

    gflops: float
    merged_gflops: float | None = None
    top1: float | None = None
    using: str | None = None


class PublishedWeights(Settings):
    """Where the authors publish a model's weights, and the licence stated there."""

    url: str
    licence: str


class ModelConfig(Settings):
    """One file of `export_configs/`: the family that builds the model, and its presets."""

    family: str
    architecture: str
    options: Mapping[str, Any] = Field(default_factory=dict)
    preprocessing: Mapping[str, Any] = Field(default_factory=dict)
    proportional: bool = True
    published: PublishedWeights | None = None
    paper: PaperFigures | None = None
    measured: MeasuredFigures | None = None
    default_preset: str | None = None
    presets: Mapping[str, AnyPreset] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _default_exists(self) -> ModelConfig:
        if self.default_preset is not None and self.default_preset not in self.presets:
            raise ValueError(f"default_preset '{self.default_preset}' is not among the presets")
        return self


def _written(path: str) -> str:
    """The manifest and the config state this path, and their text is UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the path is no UTF-8; rename the file or folder") from error
    return path


WrittenPath = Annotated[str, AfterValidator(_written)]


class TunedPresets(Settings):
    """A file of presets that tune found for one model."""

    presets: Mapping[str, AnyPreset]


class ModelSpec(Settings):
    """Which model with which weights: what a family needs to build it."""

    name: str
    config: ModelConfig
    weights: WrittenPath = "pretrained"
    image_size: Annotated[int, Field(gt=0, le=4096)] | None = None


def method_settings(values: Mapping[str, Any], where: str = "method") -> MethodSettings:
    """Settings of the method that `values` names; ConfigError names the first bad field."""
    name = values.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: name: give one of {', '.join(methods)}")
    if name not in methods:
        raise ConfigError(f"{where}: {unknown_name('method', name, methods)}")
    found: MethodSettings = validated(methods[name].settings, values, where)
    return found


def _method(values: Any) -> Any:
    """A registered method's settings from plain values; those that are settings stay."""
    if not isinstance(values, Mapping):
        return values
    try:
        return method_settings(values)
    except ConfigError as error:
        raise ValueError(str(error)) from error


AnyMethod = Annotated[SerializeAsAny[MethodSettings], BeforeValidator(_method)]


class RunConfig(Settings):
    """One export, fully resolved; written beside the artifacts."""

    model: ModelSpec
    method: AnyMethod
    uint8_input: bool = False
    trace: bool = False
    opset: Annotated[int, Field(ge=20, le=23)] = 20
    external_data: Literal["auto", "always", "never"] = "auto"
    calibrate: WrittenPath | None = None
    images: WrittenPath | None = None

    def digest(self) -> str:
        """A hash of every setting that shapes the artifacts."""
        text = json.dumps(stamped(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=True, allow_unicode=True)


def validated(kind: type[Settings], values: Mapping[str, Any], where: str) -> Any:
    """Build settings from plain values; ConfigError names the first bad field and its value."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        value = repr(first["input"])
        value = value if len(value) < 80 else f"{value[:77]}..."
        shown = f" (got {value})" if field and first["type"] != "missing" else ""
        raise ConfigError(f"{where}: {field + ': ' if field else ''}{text}{shown}") from error


FORMAT_2 = {  # a method as manifests of format 2, and graphs, state it: one shape for all
    "name": "atm",
    "merge": "adaptive",
    "preset": None,
    "point": None,
    "r": None,
    "schedule": "constant",
    "proportional": None,
}


def upgraded(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method of format 2 without the fields that say nothing of it."""
    name = method.get("name", FORMAT_2["name"])
    if not isinstance(name, str) or name not in methods:
        return dict(method)
    known = methods[name].settings.model_fields
    kept = {
        key: value
        for key, value in method.items()
        if key in known or key not in FORMAT_2 or value != FORMAT_2[key]
    }
    return {"name": FORMAT_2["name"], **kept}


def stamped(config: RunConfig) -> dict[str, Any]:
    """The config as graphs state it; methods that were there before format 3 keep their bytes."""
    values = config.model_dump(mode="json")
    if values["external_data"] == "auto":  # where weights lie is then the model's to say
        del values["external_data"]
    return {**values, "method": of_format_2(values["method"])}


def of_format_2(method: Any) -> Any:
    """A method's plain values with all fields that format 2 has, where it has no others."""
    if not isinstance(method, Mapping) or not method.keys() <= FORMAT_2.keys():
        return method
    return {**FORMAT_2, **method}


def exported_config(manifest: Mapping[str, Any], where: str) -> RunConfig:
    """The config of a finished run; ManifestError names the first bad field."""
    try:
        values = {**manifest["config"]}
        if isinstance(values.get("method"), Mapping):
            values["method"] = method_settings(upgraded(values["method"]), f"{where}: method")
        config: RunConfig = validated(RunConfig, values, f"{where}: config")
    except ConfigError as error:
        raise ManifestError(f"{error}; export again with --force") from error
    return config


def user_config_folder() -> Path:
    """Where a user's own configs and the presets of `tune` lie: $ATM_EXPORT_CONFIGS, else
    atm-export in the user's config folder."""
    given = os.environ.get("ATM_EXPORT_CONFIGS")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "atm-export"


def config_folders() -> list[Path]:
    """Folders that hold model configs: the user's, then the shipped ones."""
    shipped = Path(str(resources.files("atm_export"))) / "export_configs"
    if not shipped.is_dir():
        shipped = Path(__file__).resolve().parent.parent / "export_configs"
    return [user_config_folder(), shipped]


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot read {path}: {error.strerror}; set ATM_EXPORT_CONFIGS to a folder of yours"
    )


@cache
def _read_yaml(path: Path, kind: type[Settings]) -> Any:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings")
    return validated(kind, values, str(path))


def model_names() -> list[str]:
    """Every configured model, sorted."""
    return sorted({path.stem for folder in config_folders() for path in folder.glob("*.yaml")})


def file_name(model: str) -> str:
    """A model's name as the stem of a file."""
    return model.replace(":", "_").replace("/", "_")


def preset_file(model: str) -> Path:
    """Where `tune` keeps the presets of a model that it found: beside the user's configs, which it
    never changes."""
    return user_config_folder() / "presets" / f"{file_name(model)}.yaml"


def check_preset(model: str, name: str) -> None:
    """Before a long search: ConfigError or OutputError if its preset could not be written."""
    place.plain_name(name, "--name")
    if name in _written_config(model).presets:
        raise ConfigError(f"--name {name}: {model} has a preset of that name; give another")
    path = preset_file(model)
    place.refuse_loss(path.parent, [path.name], remedy=OTHER_CONFIGS)


def add_user_preset(model: str, name: str, preset: Preset) -> Path:
    """Write `preset` into the user's preset file of `model`; returns its path. An earlier preset of
    that name that tune wrote is replaced. Raises ConfigError, OutputError."""
    check_preset(model, name)
    presets = _tuned_presets(model) | {name: preset}
    values = {
        name: one.model_dump(mode="json", exclude_defaults=True) for name, one in presets.items()
    }
    path = preset_file(model)
    text = yaml.safe_dump({"presets": values}, sort_keys=False)
    place.put_files(path.parent, {path.name: text.encode()}, OTHER_CONFIGS)
    _read_yaml.cache_clear()
    return path


def load_model_config(name: str) -> ModelConfig:
    """The config of `name`, or of any timm VisionTransformer as `timm:NAME`; with the presets that
    tune found."""
    config = _written_config(name)
    tuned = _tuned_presets(name)
    return (
        config.model_copy(update={"presets": {**config.presets, **tuned, **config.presets}})
        if tuned
        else config
    )


def _written_config(name: str) -> ModelConfig:
    if name.startswith("timm:"):
        own = user_config_folder() / f"{file_name(name)}.yaml"
        if _there(own):
            return _read_yaml(own, ModelConfig)
        return ModelConfig(
            family="timm",
            architecture=name.removeprefix("timm:"),
            default_preset="default",
            presets={"default": DEFAULT_POINT},
        )
    for folder in config_folders():
        path = folder / f"{name}.yaml"
        if path.parent == folder and _there(path):
            return _read_yaml(path, ModelConfig)
    raise unknown_name(
        "model", name, model_names(), "or timm:NAME for any plain timm VisionTransformer"
    )


def _tuned_presets(model: str) -> dict[str, Preset]:
    path = preset_file(model)
    return dict(_read_yaml(path, TunedPresets).presets) if path.is_file() else {}


def find_preset(name: str, model: str, config: ModelConfig) -> Preset | MethodPreset:
    """A preset by name; ConfigError offers the nearest."""
    if name not in config.presets:
        if not config.presets:
            raise ConfigError(
                f"model '{model}' has no presets; give --alpha, --beta and --theta-min"
            )
        raise unknown_name(f"preset of {model}", name, config.presets)
    return config.presets[name]


def nearest_preset(gflops: float, model: str, config: ModelConfig) -> str:
    """The preset with the most GFLOPs at or below `gflops`, fine-tuned rows left out."""
    points = {n: p for n, p in config.presets.items() if isinstance(p, Preset)}
    rows = {n: p.gflops for n, p in points.items() if p.gflops and not p.fine_tuned}
    if not rows:
        raise ConfigError(f"model '{model}' has no presets with GFLOPs; --gflops cannot choose one")
    if not gflops > 0:
        raise ConfigError(f"--gflops {gflops:g}: give a number above 0")
    fitting = [(value, name) for name, value in rows.items() if value <= gflops]
    if not fitting:
        low = min(rows.values())
        raise ConfigError(f"--gflops {gflops:g}: the lowest preset of {model} needs {low:g} GFLOPs")
    return max(fitting)[1]
