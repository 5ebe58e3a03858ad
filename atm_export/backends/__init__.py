"""Backends, by name; each runs the proven graph, or engines that it builds of it."""

from atm_export.backends.base import Backend
from atm_export.backends.onnxruntime.backend import OnnxRuntime
from atm_export.backends.openvino.backend import OpenVINO
from atm_export.backends.tensorrt.backend import TensorRT
from atm_export.registry import Registry

ONNXRUNTIME, OPENVINO, TENSORRT = OnnxRuntime.name, OpenVINO.name, TensorRT.name

backends: Registry[Backend] = Registry("backend")
backends.add(ONNXRUNTIME, OnnxRuntime())
backends.add(OPENVINO, OpenVINO())
backends.add(TENSORRT, TensorRT())
