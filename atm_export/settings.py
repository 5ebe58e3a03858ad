"""The base of all settings, and the number types that several of them use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atm_export.errors import ConfigError

Gflops = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Cosine = Annotated[float, Field(gt=-1, le=1, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of all settings: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def validated(
    kind: type[Settings],
    values: Mapping[str, Any],
    where: str,
    groups: Collection[str] = (),
) -> Any:
    """Build settings from plain values; ConfigError names the first bad field and its value.

    groups: fields that the name of a field in them leaves out."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part not in groups)
        text = first["msg"].removeprefix("Value error, ")
        value = repr(first["input"])
        value = value if len(value) < 80 else f"{value[:77]}..."
        inner = isinstance(first["input"], Mapping) and first["type"] == "value_error"
        shown = f" (got {value})" if field and first["type"] != "missing" and not inner else ""
        raise ConfigError(f"{where}: {field + ': ' if field else ''}{text}{shown}") from error
