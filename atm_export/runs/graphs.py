"""A graph as files have it: one ONNX file, and the files beside it that hold its large weights.

ONNX Runtime is given all of them from memory, so that what was hashed is what runs. Which files a
graph reads is read off its bytes, by the wire format of protocol buffers and the field numbers of
onnx.proto (github.com/onnx/onnx). Nothing here imports more than NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import NamedTuple

from atm_export.errors import ChangedFileError
from atm_export.runs.reading import Run, read_checked

MOST_NESTED = 32
Buffer = bytes | memoryview | mmap


@dataclass(frozen=True)
class SavedGraph:
    """graph: bytes of the ONNX file (or OpenVINO's .xml). beside: by the location that it names,
    the bytes of every file with its weights."""

    graph: bytes
    beside: Mapping[str, Buffer] = field(default_factory=dict)


def read_graph(run: Run, name: str) -> SavedGraph:
    """A graph of a run, each file hashed as it was read; one of OpenVINO's format (.xml) has its
    weights in the .bin file of its name.

    MissingFileError where it names a file that the run does not list (a path, another's file);
    ChangedFileError where one was changed. Everything is held in memory once.
    """
    graph = read_checked(run, name)
    if name.endswith(".xml"):
        beside = f"{name.removesuffix('.xml')}.bin"
        return SavedGraph(graph, {beside: read_checked(run, beside)})
    try:
        named = locations(graph)
    except ValueError as error:
        raise ChangedFileError(
            f"{run.folder}: {name} is no ONNX file ({error}); export again"
        ) from error
    return SavedGraph(graph, {each: read_checked(run, each) for each in sorted(named)})


# By message, its fields that lead to tensors: number to message.
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def locations(graph: bytes) -> set[str]:
    """Names of the files that tensors of a serialized graph lie in; ValueError for what is none."""
    return set(_locations(memoryview(graph), "model", 0))


def _locations(data: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > MOST_NESTED:
        raise ValueError("it is nested too deeply")
    leads = _FIELDS[message]
    for record in records(data):
        kind = leads.get(record.number)
        if kind is None or not isinstance(record.value, memoryview):
            continue
        if kind == "entry":
            key, value = entry_of(record.value)
            if key == "location":
                yield value
        else:
            yield from _locations(record.value, kind, depth + 1)


def entry_of(pair: memoryview) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto; ValueError."""
    texts = {each.number: each.value for each in records(pair)}
    key, value = (texts.get(number, memoryview(b"")) for number in (1, 2))
    if not isinstance(key, memoryview) or not isinstance(value, memoryview):
        raise ValueError("an entry is no text")
    return bytes(key).decode(), bytes(value).decode()


class Record(NamedTuple):
    """One field of a message: its number, its value (bytes of what has a length, or a whole
    number; None for others), and all of its bytes."""

    number: int
    value: memoryview | int | None
    whole: memoryview


def records(data: memoryview) -> Iterator[Record]:
    """The fields of a serialized message; ValueError for what is none."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        kind = key & 7
        value: memoryview | int | None = None
        if kind == 2:
            size, at = _varint(data, at)
            if size > len(data) - at:
                raise ValueError("a field is longer than the file")
            value = data[at : at + size]
            at += size
        elif kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("it holds fields of an unknown kind")
        yield Record(key >> 3, value, data[start:at])
    if at != len(data):
        raise ValueError("it ends within a field")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A whole number of 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number is too long")
