"""Frozen, validated settings, and the model configs in `export_configs/`.

Unknown keys and impossible values fail here, with the name of the field.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atm_export.errors import ConfigError, unknown_name

ScheduleShape = Literal["constant", "decreasing", "increasing"]
Cosine = Annotated[float, Field(gt=-1, le=1, allow_inf_nan=False)]


class MethodName(StrEnum):
    """How tokens merge: atm decides r at run time, tome takes a fixed r, none merges nothing."""

    ATM = "atm"
    TOME = "tome"
    NONE = "none"


class MergePolicy(StrEnum):
    """Who shares one r: adaptive, the batch (as in the paper); frozen, every batch the same;
    per-image, nobody: each image gets what it would get alone."""

    ADAPTIVE = "adaptive"
    FROZEN = "frozen"
    PER_IMAGE = "per-image"


class Settings(BaseModel):
    """Base of all settings: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OperatingPoint(Settings):
    """ATM's three numbers: theta_l = max(alpha - (exp(beta (l - 1)) - 1), theta_min)."""

    alpha: Cosine
    beta: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
    theta_min: Cosine
    split: Annotated[int, Field(ge=0)] | None = None


class Preset(OperatingPoint):
    """A named operating point with what the paper says of it (GFLOPs = 1e9 multiply-adds)."""

    table: str | None = None
    gflops: float | None = None
    top1: float | None = None
    fine_tuned: bool = False

    @property
    def point(self) -> OperatingPoint:
        return OperatingPoint(**self.model_dump(include=set(OperatingPoint.model_fields)))


# Lossless for DeiT-T in table A2, and for ViT-Tiny as measured in the README; others should tune.
DEFAULT_POINT = Preset(alpha=1.0, beta=0.035, theta_min=0.88)


class PaperFigures(Settings):
    """What the paper reports for the unmerged model."""

    gflops: float
    top1: float


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
    presets: Mapping[str, Preset] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _default_exists(self) -> ModelConfig:
        if self.default_preset is not None and self.default_preset not in self.presets:
            raise ValueError(f"default_preset '{self.default_preset}' is not among the presets")
        return self


class ModelSpec(Settings):
    """Which model with which weights: what a family needs to build it."""

    name: str
    config: ModelConfig
    weights: str = "pretrained"
    image_size: Annotated[int, Field(gt=0, le=4096)] | None = None


class Method(Settings):
    """How tokens merge in this run."""

    name: MethodName = MethodName.ATM
    merge: MergePolicy = MergePolicy.ADAPTIVE
    preset: str | None = None
    point: OperatingPoint | None = None
    r: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    schedule: ScheduleShape = "constant"
    proportional: bool | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Method:
        if self.name is MethodName.TOME and not self.r:
            raise ValueError("method tome needs -r, the tokens merged per block (for example -r 8)")
        if self.name is not MethodName.TOME and self.r is not None:
            raise ValueError("-r belongs to --method tome; ATM decides r by its thresholds")
        if self.name is not MethodName.ATM and self.merge is not MergePolicy.ADAPTIVE:
            raise ValueError(f"--merge {self.merge.value} belongs to --method atm")
        return self


class RunConfig(Settings):
    """One export, fully resolved; written beside the artifacts."""

    model: ModelSpec
    method: Method
    uint8_input: bool = False
    trace: bool = False
    opset: Annotated[int, Field(ge=20, le=23)] = 20
    calibrate: str | None = None
    images: str | None = None

    def digest(self) -> str:
        """A hash of every setting that shapes the artifacts."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
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
        shown = f" (got {first['input']!r})" if field and first["type"] != "missing" else ""
        raise ConfigError(f"{where}: {field + ': ' if field else ''}{text}{shown}") from error


def user_config_folder() -> Path:
    """Where a user's own configs lie, and `tune` writes presets: $ATM_EXPORT_CONFIGS, else
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
def _read_config(path: Path) -> ModelConfig:
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
    return validated(ModelConfig, values, str(path))


def model_names() -> list[str]:
    """Every configured model, sorted."""
    return sorted({path.stem for folder in config_folders() for path in folder.glob("*.yaml")})


def file_name(model: str) -> str:
    """A model's name as the stem of a file."""
    return model.replace(":", "_").replace("/", "_")


def add_user_preset(model: str, name: str, preset: Preset) -> Path:
    """Write `preset` into the user's config of `model` (a copy of the shipped one, if there is
    none yet); returns its path. ConfigError if the folder cannot be written."""
    config = load_model_config(model)
    values = config.model_dump(mode="json", exclude_none=True)
    values["presets"][name] = preset.model_dump(mode="json", exclude_defaults=True)
    path = user_config_folder() / f"{file_name(model)}.yaml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; set ATM_EXPORT_CONFIGS to a folder of yours"
        ) from error
    _read_config.cache_clear()
    return path


def load_model_config(name: str) -> ModelConfig:
    """The config of `name`, or of any timm VisionTransformer as `timm:NAME`."""
    if name.startswith("timm:"):
        own = user_config_folder() / f"{file_name(name)}.yaml"
        if _there(own):
            return _read_config(own)
        return ModelConfig(
            family="timm",
            architecture=name.removeprefix("timm:"),
            default_preset="default",
            presets={"default": DEFAULT_POINT},
        )
    for folder in config_folders():
        path = folder / f"{name}.yaml"
        if path.parent == folder and _there(path):
            return _read_config(path)
    raise unknown_name(
        "model", name, model_names(), "or timm:NAME for any plain timm VisionTransformer"
    )


def find_preset(name: str, model: str, config: ModelConfig) -> Preset:
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
    rows = {n: p.gflops for n, p in config.presets.items() if p.gflops and not p.fine_tuned}
    if not rows:
        raise ConfigError(f"model '{model}' has no presets with GFLOPs; --gflops cannot choose one")
    fitting = [(value, name) for name, value in rows.items() if value <= gflops]
    if not fitting:
        low = min(rows.values())
        raise ConfigError(f"--gflops {gflops:g}: the lowest preset of {model} needs {low:g} GFLOPs")
    return max(fitting)[1]
