"""The seam: every difference between TensorRT 10.x, 11.x and TensorRT-RTX, and nothing else.

TensorRT 10 needs the strongly-typed flag at network creation; 11 and RTX know nothing else. RTX
names its targets (compute capabilities) and builds without a GPU; enterprise TensorRT builds for
the GPU that is there. `tests/trt_surface/` holds the API of real versions, and the tests hold this
module against it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

from atm_export.backends.tensorrt.settings import EngineSettings, Flavor, Precision
from atm_export.errors import ConfigError, MissingDependencyError

MODULES = {Flavor.TENSORRT: "tensorrt", Flavor.RTX: "tensorrt_rtx"}
EXTRAS = {Flavor.TENSORRT: "trt", Flavor.RTX: "rtx"}
COMMON_RTX = (86, 89, 120)
# The matching needs FP32 products, which SM75 lacks; FP8 came with SM89.
LEAST_SM = {Precision.FP8: 89}
_MISSING = {Precision.FP8: "FP8"}
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Api:
    """One installed TensorRT."""

    flavor: Flavor
    module: ModuleType

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def keeps_timings(self) -> bool:
        """Whether builds time kernels at all; RTX chooses them on the target instead."""
        return self.flavor is Flavor.TENSORRT

    def logger(self, record: Any) -> Any:
        """An ILogger that calls record(severity name, message)."""
        trt = self.module

        class Recorder(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                record(severity.name, message)

        return Recorder()

    def network(self, builder: Any) -> Any:
        """An empty strongly typed network."""
        flags = 0
        if self.flavor is Flavor.TENSORRT and self.major < 11:
            flags = 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return builder.create_network(flags)

    def configure(self, config: Any, settings: EngineSettings, sms: Sequence[int]) -> None:
        """Flags, targets and limits; the matching arithmetic must not run in TF32."""
        trt = self.module
        config.clear_flag(trt.BuilderFlag.TF32)
        if settings.refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        if settings.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if settings.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if settings.workspace is not None:
            pool = trt.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, settings.workspace * MEBIBYTE)
        if settings.opt_level is not None:
            config.builder_optimization_level = settings.opt_level
        if self.flavor is Flavor.RTX:
            config.num_compute_capabilities = len(sms)
            for i, sm in enumerate(sms):
                capability = getattr(trt.ComputeCapability, f"SM{sm}")
                config.set_compute_capability(capability, i)

    def targets(
        self, settings: EngineSettings, precision: Precision, gpu: int | None
    ) -> tuple[int, ...]:
        """The compute capabilities to build for. gpu: that of the GPU that is there, if any."""
        if self.flavor is Flavor.TENSORRT:
            return (self._own_gpu(settings, gpu),)
        known = self.known_sms()
        least = LEAST_SM.get(precision, 80)
        common = [sm for sm in COMMON_RTX if sm >= least]
        chosen = settings.sms or ((gpu,) if gpu in known else tuple(common))
        for sm in chosen:
            if sm not in known:
                offer = ", ".join(str(number) for number in known)
                raise ConfigError(f"--sm {sm}: TensorRT-RTX {self.version} builds for {offer}")
            if sm is not None and sm < least:
                raise ConfigError(
                    f"--sm {sm} has no {_MISSING.get(precision, 'FP32')} matrix products in "
                    f"TensorRT-RTX; take {least} or later"
                )
        return tuple(sm for sm in chosen if sm is not None)

    def _own_gpu(self, settings: EngineSettings, gpu: int | None) -> int:
        if settings.sms and settings.sms != (gpu,):
            there = f"SM{gpu}" if gpu else "no GPU"
            raise ConfigError(
                "--sm belongs to TensorRT-RTX; enterprise TensorRT builds for the GPU that is "
                f"there ({there})"
            )
        if gpu is None:
            raise ConfigError(
                "enterprise TensorRT builds on a GPU and none is here; build there, or ahead of "
                "time with --trt-flavor rtx"
            )
        return gpu

    @property
    def cuda(self) -> str | None:
        """Major CUDA version that the installed package stands on, as its name says it."""
        for major in ("13", "12"):
            for name in (f"{MODULES[self.flavor]}_cu{major}", f"{MODULES[self.flavor]}-cu{major}"):
                with contextlib.suppress(metadata.PackageNotFoundError):
                    metadata.version(name)
                    return major
        return None

    def known_sms(self) -> tuple[int, ...]:
        """Compute capabilities that this TensorRT-RTX can build for."""
        names = [name for name in dir(self.module.ComputeCapability) if name.startswith("SM")]
        return tuple(sorted(int(name.removeprefix("SM")) for name in names))


def load_api(flavor: Flavor | None = None) -> Api:
    """The TensorRT that is installed; enterprise first, unless `flavor` says which.

    Raises MissingDependencyError naming the extra.
    """
    wanted = [flavor] if flavor else [Flavor.TENSORRT, Flavor.RTX]
    for candidate in wanted:
        try:
            module = importlib.import_module(MODULES[candidate])
            return Api(candidate, module)
        except (ImportError, OSError):
            continue
    offers = " or ".join(f'pip install "atm-export[{EXTRAS[each]}]"' for each in wanted)
    missing = " or ".join(MODULES[each] for each in wanted)
    raise MissingDependencyError(f"{missing} is not installed; {offers}")


def gpu_sm() -> int | None:
    """Compute capability of the GPU that is there (90 for 9.0), or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
