"""Translations that the processes of one test run share: what one made the others read."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import onnx


class Shelf(MutableMapping[str, onnx.ModelProto]):
    """In memory, and in `folder` for the others; a file is whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.here: dict[str, onnx.ModelProto] = {}
        folder.mkdir(exist_ok=True)

    def __getitem__(self, key: str) -> onnx.ModelProto:
        if key not in self.here:
            try:
                data = (self.folder / key).read_bytes()
            except FileNotFoundError:
                raise KeyError(key) from None
            self.here[key] = onnx.ModelProto.FromString(data)
        return self.here[key]

    def __setitem__(self, key: str, value: onnx.ModelProto) -> None:
        self.here[key] = value
        if not (self.folder / key).exists():
            own = self.folder / f"{key}.{os.getpid()}"
            own.write_bytes(value.SerializeToString())
            own.replace(self.folder / key)

    def __delitem__(self, key: str) -> None:
        del self.here[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.here)

    def __len__(self) -> int:
        return len(self.here)
