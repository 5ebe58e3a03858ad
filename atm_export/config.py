"""Frozen, validated settings: of a preset, a model, a run.

Unknown keys and impossible values fail here, with the name of the field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from atm_export.errors import ConfigError, ManifestError
from atm_export.methods import USUAL_METHOD, methods
from atm_export.methods.base import MethodSettings
from atm_export.methods.flat import flattened
from atm_export.methods.given import method_settings, settings_of
from atm_export.methods.moves import Blocks
from atm_export.settings import Gflops, Percent, Settings, validated


class PresetFigures(Settings):
    """What a preset costs and keeps on images that were at hand: GFLOPs, agreement with the
    unmerged model (percent), mean KL divergence from it."""

    gflops: Gflops
    agreement: Percent
    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    images: Annotated[int, Field(gt=0)]


class Preset(Settings):
    """Settings of a method under a name, with what is known of them (GFLOPs = 1e9 multiply-adds):
    by the paper (table, gflops, top1), by another (published: in words), or measured. fitted: the
    paper says what it costs, not how it is set; these settings meet that cost.

    A file has those of the usual method beside the figures, and those of any other, which it names,
    under `settings`.
    """

    method: str = USUAL_METHOD
    settings: Mapping[str, Any]
    table: str | None = None
    gflops: Gflops | None = None
    top1: Percent | None = None
    fine_tuned: bool = False
    fitted: bool = False
    published: str | None = None
    measured: PresetFigures | None = None

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "settings" in values or "method" in values:
            return values
        figures = {name: value for name, value in values.items() if name in cls.model_fields}
        return {**figures, "settings": {n: v for n, v in values.items() if n not in figures}}

    @field_validator("settings", mode="after")
    @classmethod
    def _of_the_method(cls, settings: Any, info: ValidationInfo) -> Any:
        method = info.data.get("method")
        if method is None:  # named already as the field at fault
            return settings
        try:
            return flattened(settings_of(method, settings, f"method {method}"))
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @model_serializer(mode="wrap")
    def _as_in_a_file(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        # Graphs state presets: what is not said is left out.
        for name in ("fitted", "published", "measured"):
            if not getattr(self, name):
                values.pop(name, None)
        if self.method != USUAL_METHOD:
            return values
        values.pop("method", None)
        return {**values.pop("settings"), **values}

    @property
    def chosen(self) -> MethodSettings:
        """The method's settings."""
        return settings_of(self.method, self.settings)


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
    presets: Mapping[str, Preset] = Field(default_factory=dict)

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
    """A file of presets that a search found for one model."""

    presets: Mapping[str, Preset]


class ModelSpec(Settings):
    """Which model with which weights: what a family needs to build it.

    task: what it answers; auto: embed where the model has no classifier (`classify` for runs from
    before there was a choice). normalize: embeddings of length 1. pool: what of the final tokens is
    embedded (None: as the model has it). layers: blocks, from 0, whose patches are given (None: the
    last). Those two are left out of files where they are None.
    """

    name: str
    config: ModelConfig
    weights: WrittenPath = "pretrained"
    image_size: Annotated[int, Field(gt=0, le=4096)] | None = None
    task: Literal["auto", "classify", "embed", "dense"] = "classify"
    normalize: bool = False
    pool: Literal["token", "avg", "map"] | None = None
    layers: Blocks | None = None

    @model_serializer(mode="wrap")
    def _as_before_there_was_a_choice(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in values.items()
            if value is not None or name not in ("pool", "layers")
        }


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
    """The config as graphs state it; methods that were there before format 3 keep their bytes.

    Of a model's presets those of the paper's method that it has, the usual and the chosen one: what
    a search added since changes no graph.
    """
    values = config.model_dump(mode="json")
    if values["external_data"] == "auto":  # where weights lie is then the model's to say
        del values["external_data"]
    model = config.model.config
    presets = values["model"]["config"]["presets"]
    for name, preset in model.presets.items():
        own = preset.table is not None and preset.method == USUAL_METHOD
        if not own and name not in (model.default_preset, config.method.preset):
            del presets[name]
    return {**values, "method": _of_format_2(values["method"])}


def _of_format_2(method: Any) -> Any:
    """A method's plain values with all fields that format 2 has, where it says no others."""
    if not isinstance(method, Mapping):
        return method
    said = {key: value for key, value in method.items() if key in FORMAT_2 or value is not None}
    return {**FORMAT_2, **said} if said.keys() <= FORMAT_2.keys() else method


def exported_config(config: Mapping[str, Any], where: str) -> RunConfig:
    """The config of a finished run, as its manifest states it; ManifestError names the first bad
    field."""
    try:
        values = {**config}
        if isinstance(values.get("method"), Mapping):
            values["method"] = method_settings(upgraded(values["method"]), f"{where}: method")
        found: RunConfig = validated(RunConfig, values, f"{where}: config")
    except ConfigError as error:
        raise ManifestError(f"{error}; export again with --force") from error
    return found
