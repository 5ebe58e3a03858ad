"""How a graph is saved: its weights in the file, or in one file beside it.

An ONNX file ends at 2 GB, which is protobuf's limit. Weights beside it have their places one after
the other, each at a multiple of 4096 bytes, so that a file can be mapped; what is small (shapes,
thresholds) stays in the graph. The same model gives the same bytes.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from atm_export.errors import ConfigError
from atm_export.graph.reading import copied
from atm_export.runs.graphs import Buffer, SavedGraph, locations

External = Literal["auto", "always", "never"]
LIMIT = 1_900_000_000  # bytes of weights; protobuf's limit is 2^31, and the graph needs room
SMALL = 1024
ALIGNED = 4096
SUFFIX = ".data"  # of the file beside


@dataclass(frozen=True)
class Weights:
    """The content of a file of weights, in order: where each tensor begins. `size` in bytes."""

    places: tuple[tuple[int, ir.TensorProtocol], ...]
    size: int

    def __iter__(self) -> Iterator[Buffer]:
        """Its bytes, a tensor at a time."""
        at = 0
        for offset, tensor in self.places:
            yield bytes(offset - at)
            yield _bytes_of(tensor)
            at = offset + tensor.nbytes


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all weights and constants of a graph."""
    return sum(tensor.nbytes for _, tensor in _tensors(model))


def is_beside(size: int, external: External) -> bool:
    """Whether `size` bytes of weights go into a file of their own; ConfigError where they must not
    and no ONNX file holds them."""
    if external == "never" and size > LIMIT:
        raise ConfigError(
            f"--external-data never: the weights have {size / 1e9:.2f} GB, and an ONNX file ends "
            "at 2 GB; leave the option out, and they lie beside the file"
        )
    return external == "always" or size > LIMIT


def graph_bytes(model: ir.Model) -> bytes:
    """The ONNX file of a graph, weights inside; the same bytes for the same graph."""
    return bytes(_proto(model).SerializeToString(deterministic=True))


def save_graph(
    model: ir.Model, name: str, external: External = "auto"
) -> dict[str, bytes | Iterable[Buffer]]:
    """The files of a graph by name, that of the weights first: `NAME.data`, where they lie beside.

    The weights' file is given a tensor at a time. Raises ConfigError, as `is_beside` does.
    """
    if not is_beside(weight_bytes(model), external):
        return {name: graph_bytes(model)}
    location, end = f"{name}{SUFFIX}", 0
    places: dict[str, int] = {}
    for key, tensor in _large(model):
        places[key] = -(-end // ALIGNED) * ALIGNED
        end = places[key] + tensor.nbytes
    moved = _moved(model, {key: (location, offset) for key, offset in places.items()})
    weights = Weights(tuple((places[key], tensor) for key, tensor in _large(model)), end)
    return {location: weights, name: graph_bytes(moved)}


def written(model: ir.Model, path: Path, external: External = "auto") -> Path:
    """Write a graph's files into a folder that is there; returns the ONNX file."""
    for name, data in save_graph(model, path.name, external).items():
        with path.with_name(name).open("wb") as file:
            file.writelines((data,) if isinstance(data, bytes) else data)
    return path


def in_memory(model: ir.Model) -> SavedGraph:
    """A graph to be run here. Weights that no ONNX file holds are not copied: each is a file of
    its own, in memory."""
    if not is_beside(weight_bytes(model), "auto"):
        return SavedGraph(graph_bytes(model))
    large = dict(_large(model))
    places = {key: (str(i), 0) for i, key in enumerate(large)}
    beside = {places[key][0]: _bytes_of(tensor) for key, tensor in large.items()}
    return SavedGraph(graph_bytes(_moved(model, places)), beside)


def graph_from_file(path: Path) -> ir.Model:
    """A graph that was saved; weights beside it are mapped, not read."""
    graph = path.read_bytes()
    return graph_from_memory(
        SavedGraph(graph, {name: _mapped(path.with_name(name)) for name in locations(graph)})
    )


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def graph_from_memory(saved: SavedGraph) -> ir.Model:
    """The graph of bytes that were read; its weights share them."""
    model = ir.from_proto(onnx.load_from_string(saved.graph))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            data = memoryview(saved.beside[str(tensor.location)])
            begin = tensor.offset or 0
            array = np.frombuffer(data[begin : begin + tensor.nbytes], tensor.dtype.numpy())
            shaped = array.reshape(tensor.shape.numpy())
            value.const_value = ir.Tensor(shaped, dtype=tensor.dtype, name=tensor.name)
    return model


def fingerprint(model: ir.Model) -> str:
    """A hash of nodes and weights, wherever these lie; metadata of the file does not count."""
    moved = _moved(model, {key: ("", 0) for key, _ in _large(model)})
    digest = hashlib.sha256(_proto(moved).graph.SerializeToString(deterministic=True))
    for _, tensor in _large(model):
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _proto(model: ir.Model) -> onnx.ModelProto:
    """As files have it: nodes without the tags of work under way."""
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        del node.metadata_props[:]
    return proto


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            yield name, value.const_value


def _large(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    return ((name, tensor) for name, tensor in _tensors(model) if tensor.nbytes >= SMALL)


def _moved(model: ir.Model, places: Mapping[str, tuple[str, int]]) -> ir.Model:
    """The same graph, with these weights at (location, offset)."""
    moved = copied(model)
    for name, (location, offset) in places.items():
        value = moved.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.ExternalTensor(
            location,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=str(tensor.name),
        )
    return moved


def _bytes_of(tensor: ir.TensorProtocol) -> Buffer:
    """A tensor's bytes, row by row; shared where it lies so."""
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
