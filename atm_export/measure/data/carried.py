"""Encoded images that travel to where they are decoded."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO

from atm_export.errors import DataError
from atm_export.measure.data.decode import words_of
from atm_export.measure.data.readers import Reader, read


@dataclass(frozen=True)
class CarriedReader:
    """Some images of a reader under their numbers there: the encoded bytes of each, or why they
    could not be read. names: what the user knows each by."""

    names: Mapping[int, str]
    pieces: Mapping[int, bytes | str]

    def __len__(self) -> int:
        return len(self.pieces)

    def name(self, index: int) -> str:
        return self.names[index]

    def open(self, index: int) -> IO[bytes]:
        piece = self.pieces[index]
        if isinstance(piece, str):
            raise DataError(piece)
        return io.BytesIO(piece)


def carried(reader: Reader, names: Mapping[int, str], chosen: Iterable[int]) -> CarriedReader:
    """The `chosen` images of `reader`, read now; one that cannot be read is so for who decodes it,
    in the same words."""
    return CarriedReader(names, {i: _piece(reader, i) for i in chosen})


def _piece(reader: Reader, index: int) -> bytes | str:
    try:
        return read(reader, index)
    except MemoryError:
        raise
    except Exception as error:  # as when it is decoded
        return words_of(error)
