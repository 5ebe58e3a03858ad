"""What an engine build can be told; the defaults are meant to be left alone."""

from __future__ import annotations

import hashlib
import json
import re
from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from atm_export.config import Settings
from atm_export.errors import ConfigError


class Flavor(StrEnum):
    """TENSORRT: enterprise TensorRT, builds on the GPU that runs the engine. RTX: TensorRT-RTX,
    builds ahead of time for consumer and workstation GPUs, no GPU needed."""

    TENSORRT = "tensorrt"
    RTX = "rtx"


class Precision(StrEnum):
    """The type of the heavy operators; matching, LayerNorm and softmax stay in FP32."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"


class Profile(Settings):
    """One optimization profile: the smallest, most common and largest batch."""

    min: Annotated[int, Field(ge=1)] = 1
    opt: Annotated[int, Field(ge=1)] = 8
    max: Annotated[int, Field(ge=1, le=4096)] = 64

    @model_validator(mode="after")
    def _ordered(self) -> Profile:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"a profile is min:opt:max in rising order, got {self}")
        return self

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


class EngineSettings(Settings):
    """Everything that shapes an engine.

    sms: compute capabilities as in SM86; empty for the GPU that is there, or else (RTX) the common
    generations. workspace: MiB of scratch memory at most, None for the builder's own choice.
    """

    flavor: Flavor | None = None
    precisions: tuple[Precision, ...] = (Precision.FP16,)
    sms: tuple[Annotated[int, Field(ge=50, le=999)], ...] = ()
    profiles: tuple[Profile, ...] = (Profile(),)
    workspace: Annotated[int, Field(ge=1)] | None = None
    opt_level: Annotated[int, Field(ge=0, le=5)] | None = None
    refit: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: str | None = None

    @field_validator("precisions", "profiles")
    @classmethod
    def _some_once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if not values:
            raise ValueError("give at least one")
        return tuple(dict.fromkeys(values))

    @field_validator("sms")
    @classmethod
    def _sorted(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(values)))

    def digest(self) -> str:
        """A hash of every setting that shapes the engine's bytes."""
        facts = self.model_dump(mode="json", exclude={"timing_cache", "precisions"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def parse_profiles(text: str) -> tuple[Profile, ...]:
    """`1:8:64`, or `8` for a fixed batch; several by commas."""
    profiles = []
    for part in text.split(","):
        if not re.fullmatch(r"\s*\d+(:\d+:\d+)?\s*", part):
            raise ConfigError(f"--batch {text}: a profile is min:opt:max, for example 1:8:64")
        numbers = [int(number) for number in part.split(":")]
        low, middle, high = numbers * 3 if len(numbers) == 1 else numbers
        if not 1 <= low <= middle <= high <= 4096:
            raise ConfigError(f"--batch {text}: min, opt and max rise from 1 to 4096 at most")
        profiles.append(Profile(min=low, opt=middle, max=high))
    return tuple(profiles)


def parse_sms(text: str) -> tuple[int, ...]:
    """`86,89,120` (or sm86, 8.6)."""
    sms = []
    for part in text.split(","):
        digits = part.strip().lower().removeprefix("sm").replace(".", "").replace("_", "")
        if not digits.isdigit():
            raise ConfigError(f"--sm {text}: give compute capabilities, for example 86,89,120")
        sms.append(int(digits))
    return tuple(sms)


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """`fp16` or `fp32,fp16`."""
    names = [part.strip().lower() for part in text.split(",")]
    known = [precision.value for precision in Precision]
    for name in names:
        if name not in known:
            raise ConfigError(f"--precision {name} is not one of {', '.join(known)}")
    return tuple(Precision(name) for name in names)
