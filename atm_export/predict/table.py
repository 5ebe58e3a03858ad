"""The one door to pyarrow: shards and the whole as Parquet, the same bytes for the same rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atm_export.errors import MissingDependencyError
from atm_export.predict.answering import CLASSES, EMBEDDING, LABELS, PROBABILITIES, Answering
from atm_export.strict_json import loads

PATH = "path"
PREFIX = "atm_export."  # of what the schema's metadata says
_UNREADABLE = b"unreadable"
_MOST_SHARD_FACTS = 2**30

Unreadable = tuple[tuple[str, str], ...]  # name and reason


@dataclass(frozen=True)
class Rows:
    """Answers to the pictures `names`, by column, and why other pictures have none."""

    names: tuple[str, ...]
    columns: Mapping[str, Any]
    unreadable: Unreadable = ()


def load_pyarrow() -> Any:
    """pyarrow with its Parquet; MissingDependencyError names the extra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            "predict writes Parquet with pyarrow: pip install 'atm-export[data]'"
        ) from error
    return pyarrow


def schema_of(answering: Answering, facts: Mapping[str, str]) -> Any:
    """Columns of the table, with `facts` as its metadata."""
    pa = load_pyarrow()
    if answering.top_k is None:
        kinds = {EMBEDDING: pa.list_(pa.float32(), answering.length)}
    else:
        kinds = {CLASSES: pa.list_(pa.int32()), PROBABILITIES: pa.list_(pa.float32())}
        if answering.labels is not None:
            kinds[LABELS] = pa.list_(pa.string())
    fields = [(PATH, pa.string()), *kinds.items()]
    return pa.schema(fields, {f"{PREFIX}{name}": text for name, text in facts.items()})


def shard_bytes(schema: Any, rows: Rows) -> bytes:
    """A shard as a Parquet file, which says too what could not be read."""
    pa = load_pyarrow()
    arrays = [_array(schema.field(0).type, rows.names)]
    arrays += [_array(field.type, rows.columns[field.name]) for field in list(schema)[1:]]
    told = {_UNREADABLE: json.dumps(rows.unreadable).encode(), **schema.metadata}
    table = pa.Table.from_arrays(arrays, schema=schema).replace_schema_metadata(told)
    sink = pa.BufferOutputStream()
    with _writer(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _array(kind: Any, values: Any) -> Any:
    pa = load_pyarrow()
    if isinstance(values, np.ndarray):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(values, kind)


def _writer(sink: Any, schema: Any) -> Any:
    """Values that hardly repeat have no dictionary."""
    repeated = [f"{name}.list.element" for name in (CLASSES, LABELS) if name in schema.names]
    return load_pyarrow().parquet.ParquetWriter(
        sink, schema, compression="zstd", use_dictionary=repeated or False
    )


def joined(shards: Sequence[Path], schema: Any, out: Path) -> tuple[int, Unreadable]:
    """Write the shards to `out`, a row group each (none for one without rows); returns the number
    of rows and what could not be read."""
    pa = load_pyarrow()
    count, unreadable = 0, []
    with out.open("wb") as sink, _writer(sink, schema) as writer:
        for path in shards:
            with path.open("rb") as source:
                table = pa.parquet.ParquetFile(source).read()
            facts = loads(table.schema.metadata[_UNREADABLE], list, most=_MOST_SHARD_FACTS)
            unreadable += [(name, reason) for name, reason in facts]
            if len(table):
                writer.write_table(table.replace_schema_metadata(schema.metadata))
            count += len(table)
    return count, tuple(unreadable)
