"""The main command's options of engines, as the command line knows them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from atm_export.backends import TENSORRT, backends
from atm_export.errors import ConfigError
from atm_export.numbers import Whole

if TYPE_CHECKING:
    from atm_export.backends.tensorrt.settings import EngineSettings
    from atm_export.low_precision import Low

ENGINES = Group("Engines", sort_key=4)


def _option(text: str) -> Any:
    return Parameter(group=ENGINES, help=text, negative=())


def _given(value: str | None, usual: str) -> str:
    return usual if value is None else value


@Parameter(name="*")
@dataclass(frozen=True)
class EngineOptions:
    """What the graph is proven on and what is built of it, in a user's words; None: left to the
    builder."""

    backend: Annotated[
        tuple[str, ...],
        _option(
            "Prove the graph on this backend too, beside ONNX Runtime (openvino), or build its "
            "engines (tensorrt); onnxruntime: for --precision. May be given again, or by commas."
        ),
    ] = ()
    trt: Annotated[
        bool, _option("Build TensorRT engines of the proven graph: short for --backend tensorrt.")
    ] = False
    trt_flavor: Annotated[
        Literal["tensorrt", "rtx"] | None,
        _option(
            "tensorrt: enterprise TensorRT 10 or 11, builds on the GPU that will run the engine. "
            "rtx: TensorRT-RTX, builds ahead of time without a GPU. Default: what is installed, "
            "enterprise first."
        ),
    ] = None
    sm: Annotated[
        str | None,
        _option(
            "Targets of RTX engines as compute capabilities (default: the GPU that is there, or "
            "86,89,120)."
        ),
    ] = None
    precision: Annotated[
        str | None,
        _option(
            "Of engines: fp32, fp16, bf16, fp8, int8; several by commas (default: fp16). Of "
            "--backend onnxruntime: fp32, int8, of --backend openvino: fp32, bf16, int8 (default: "
            "fp32); int8 adds model.int8.onnxruntime.onnx for CPUs, and so on (docs/int8.md). "
            "Matching stays in FP32; fp8 and int8 are calibrated on --images (graphs: --calibrate "
            "first), else on the images that ship."
        ),
    ] = None
    batch: Annotated[
        str | None,
        _option("Optimization profiles min:opt:max; several by commas (default: 1:8:64)."),
    ] = None
    timing_cache: Annotated[
        str | None,
        _option(
            "File of kernel timings (default: one in the user's cache folder; RTX times nothing)."
        ),
    ] = None
    workspace: Annotated[
        Whole | None, _option("Scratch memory at most, in MiB (default: the builder's).")
    ] = None
    refit: Annotated[bool, _option("Let weights be replaced later.")] = False
    version_compatible: Annotated[
        bool, _option("Load in later minor versions too, at a cost in speed.")
    ] = False
    hardware_compatible: Annotated[
        bool, _option("Load on Ampere and later, at a cost in speed.")
    ] = False
    opt_level: Annotated[
        Whole | None, _option("How long the builder searches, 0 to 5 (default: 3).")
    ] = None

    def chosen(self) -> tuple[str, ...]:
        """Names of backends, each once; ConfigError for one that is unknown."""
        names = [part.strip() for text in self.backend for part in text.split(",") if part.strip()]
        if self.backend and not names:
            raise ConfigError(f"--backend names none of {', '.join(backends)}")
        found = dict.fromkeys([*names, *([TENSORRT] if self.trt else [])])
        for name in found:
            backends[name]
        return tuple(found)

    @property
    def graphs_on(self) -> list[str]:
        """Backends named that run graphs, not engines."""
        return [name for name in self.chosen() if not backends[name].engines]

    def low_precisions(self) -> tuple[Low, ...]:
        """Precisions below FP32 of graphs, for backends that are named and run them; ConfigError
        for one that none of them has, unless engines take it."""
        if self.precision is None or not self.graphs_on:
            return ()
        from atm_export.backends.tensorrt import settings
        from atm_export.low_precision import low_precisions

        names = [each.value for each in settings.parse_precisions(self.precision)]
        return low_precisions(names, self.graphs_on, engines=TENSORRT in self.chosen())

    def settings(self) -> EngineSettings | None:
        """The engine settings, None without `--trt`; ConfigError names what is wrong or given in
        vain."""
        if TENSORRT not in self.chosen():
            given, plain = asdict(self), asdict(NO_ENGINES)
            apart = ("backend", "trt", *(("precision",) if self.graphs_on else ()))
            vain = [n for n in given if n not in apart and given[n] != plain[n]]
            if vain:
                names = ", ".join(f"--{name.replace('_', '-')}" for name in vain)
                more = ", or --backend onnxruntime or openvino" if vain == ["precision"] else ""
                raise ConfigError(f"{names}: of use only with --trt{more}; add it")
            return None
        from atm_export.backends.tensorrt import settings
        from atm_export.settings import validated

        values = {
            "flavor": self.trt_flavor,
            "precisions": settings.parse_precisions(_given(self.precision, "fp16")),
            "profiles": settings.parse_profiles(_given(self.batch, "1:8:64")),
            "sms": settings.parse_sms(self.sm) if self.sm else (),
            "timing_cache": self.timing_cache,
            "workspace": self.workspace,
            "refit": self.refit,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "opt_level": self.opt_level,
        }
        return validated(settings.EngineSettings, values, "engine")


NO_ENGINES = EngineOptions()
