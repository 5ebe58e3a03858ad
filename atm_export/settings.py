"""The base of all settings, and the number types that several of them use."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Gflops = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Cosine = Annotated[float, Field(gt=-1, le=1, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of all settings: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
