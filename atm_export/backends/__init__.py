"""Backends, by name; each runs the proven graph, or engines that it builds of it."""

from atm_export.backends.base import Backend
from atm_export.backends.onnxruntime.backend import OnnxRuntime
from atm_export.backends.tensorrt.backend import TensorRT
from atm_export.registry import Registry

ONNXRUNTIME, TENSORRT = OnnxRuntime.name, TensorRT.name

backends: Registry[Backend] = Registry("backend")
backends.add(ONNXRUNTIME, OnnxRuntime())
backends.add(TENSORRT, TensorRT())
