"""What a run folder says of its engines and of its graphs in low precision, as values.

Nothing here imports more than the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

FP32 = "fp32"  # the precision of model.onnx


@dataclass(frozen=True)
class TensorFacts:
    """Type and shape of an input or output; -1 or "batch" where a length is free."""

    dtype: str
    shape: tuple[str | int, ...]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        return cls(document["dtype"], tuple(document["shape"]))


@dataclass(frozen=True)
class BuiltFacts:
    """What a builder says of an engine: enough to tell whether it fits a machine.

    tensorrt: the version that built it. sms: of the GPUs that it is for. profiles: batches that it
    takes, each min:opt:max. document: all of it as JSON has it, of fields unknown here too.
    """

    flavor: str
    tensorrt: str
    sms: tuple[int, ...]
    profiles: tuple[str, ...]
    hardware_compatible: bool
    version_compatible: bool
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Of the facts that `engine_from_onnx` gives."""
        return cls(**_built(document))

    @property
    def batches(self) -> tuple[tuple[int, int, int], ...]:
        """Least, best and largest batch of each profile."""
        split = (profile.split(":") for profile in self.profiles)
        return tuple((int(low), int(best), int(high)) for low, best, high in split)


def _built(document: Mapping[str, Any]) -> dict[str, Any]:
    settings: Mapping[str, Any] = document.get("settings", {})
    return {
        "flavor": document["flavor"],
        "tensorrt": document["tensorrt"],
        "sms": tuple(document["sms"]),
        "profiles": tuple(document["profiles"]),
        "hardware_compatible": settings.get("hardware_compatible", False),
        "version_compatible": settings.get("version_compatible", False),
        "document": document,
    }


@dataclass(frozen=True)
class Source:
    """The graph that an engine was built of."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Validation:
    """The typed graph against FP32, by the angle of the main output.

    cosine_of_nine_tenths: that nine images in ten reach; min_cosine: of the worst; least_cosine:
    what was asked of it. top1_agreement, tokens_differing: counts with their intervals, mere shares
    of older runs, or None.
    """

    images: int
    cosine_of_nine_tenths: float
    min_cosine: float
    least_cosine: float
    top1_agreement: Mapping[str, Any] | float | None
    tokens_differing: Mapping[str, Any] | float | None

    @classmethod
    def of(cls, document: Mapping[str, Any], main: str) -> Self:
        share = document.get("token_share_differing")
        return cls(
            images=document["images"],
            cosine_of_nine_tenths=document[f"cosine_{main}_of_nine_tenths"],
            min_cosine=document[f"min_cosine_{main}"],
            least_cosine=document["tolerance"][f"min_cosine_{main}"],
            top1_agreement=document.get("top1_agreement"),
            tokens_differing=document.get("tokens_differing", share),
        )


@dataclass(frozen=True)
class EngineFacts(BuiltFacts):
    """An engine of a run. bytes: the plan's. status: where it ran, or why it did not;
    recommendation: which policy pays there. activation_bytes: None where it is not stated."""

    precision: str
    source: Source
    tensors: Mapping[str, TensorFacts]
    bytes: int
    activation_bytes: int | None
    status: str
    recommendation: str | None
    validation: Validation

    @classmethod
    def of_run(cls, document: Mapping[str, Any], main: str) -> Self:
        """Of a checked manifest's entry. main: the run's main output."""
        source, run = document["source"], document["run"]
        return cls(
            **_built(document),
            precision=document["precision"],
            source=Source(source["file"], source["sha256"]),
            tensors={key: TensorFacts.of(each) for key, each in document["tensors"].items()},
            bytes=document["bytes"],
            activation_bytes=document["build"]["activation_bytes"],
            status=run["status"],
            recommendation=run.get("recommendation"),
            validation=Validation.of(document["validation"], main),
        )


@dataclass(frozen=True)
class LowPrecisionFacts:
    """A graph of a run in a precision below FP32, for one backend. bytes: the ONNX file's.
    document: all of it as JSON has it."""

    backend: str
    precision: str
    source: Source
    bytes: int
    validation: Validation
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any], main: str) -> Self:
        """Of a checked manifest's entry. main: the run's main output."""
        source = document["source"]
        return cls(
            backend=document["backend"],
            precision=document["precision"],
            source=Source(source["file"], source["sha256"]),
            bytes=document["bytes"],
            validation=Validation.of(document["validation"], main),
            document=document,
        )
