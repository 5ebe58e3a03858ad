"""Which ONNX Runtime provider is taken, by order, and why the ones before it were not."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from atm_export.backends.onnxruntime import door
from atm_export.backends.onnxruntime.door import NOT_FP32
from atm_export.errors import ConfigError

ORDER = ("cuda", "cpu")
NAMES = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


@dataclass(frozen=True)
class Choice:
    """Providers to ask for, in order, and for each one left out the reason."""

    taken: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


def choose(wanted: Sequence[str] | None, available: Sequence[str]) -> Choice:
    """The usable ones of `wanted` (short or full names; None: cuda, then cpu), in its order.

    ConfigError where none is usable, or a name is unknown.
    """
    taken: list[str] = []
    refused: dict[str, str] = {}
    for name in wanted if wanted is not None else ORDER:
        full = NAMES.get(name.lower(), name)
        if full not in NAMES.values() and full not in available:
            raise ConfigError(f"unknown provider '{name}'; known: {', '.join(NAMES)}")
        reason = _why_not(full, available)
        if reason:
            refused[full] = reason
        elif full not in taken:
            taken.append(full)
    if not taken:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise ConfigError(f"no usable provider ({reasons or 'none named'}); add 'cpu' to the order")
    return Choice(tuple(taken), refused)


def describe(version: str, active: Sequence[str], choice: Choice) -> str:
    """One line: what runs the model, and why it is not an earlier choice."""
    missed = dict(choice.refused)
    for name in choice.taken:
        if name not in active:
            missed[name] = "ONNX Runtime could not start it"
    reasons = [f"not {name}: {why}" for name, why in missed.items()]
    if active[0] in NOT_FP32:
        reasons.append(f"{NOT_FP32[active[0]]}: tokens may merge otherwise than in PyTorch")
    return f"ONNX Runtime {version}, {active[0]}" + (f" ({'; '.join(reasons)})" if reasons else "")


def _why_not(name: str, available: Sequence[str]) -> str | None:
    if name not in available:
        return "not in the installed onnxruntime package"
    if name in (NAMES["cuda"], NAMES["tensorrt"]) and not cuda_devices():
        return "no NVIDIA GPU or driver here"
    return None


def best_providers() -> tuple[str, ...]:
    """CUDA where ONNX Runtime can use it, then the CPU; full names."""
    available = door.onnxruntime().get_available_providers()
    return tuple(NAMES[name] for name in ORDER if _why_not(NAMES[name], available) is None)


def cuda_devices() -> int:
    """GPUs that the NVIDIA driver offers; 0 without a driver. Loads the driver's library alone."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value
