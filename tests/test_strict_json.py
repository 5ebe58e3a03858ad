"""JSON has one reader, and what it does not take is said in one line."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import atm_export
from atm_export.errors import DataError, RunFolderError
from atm_export.strict_json import DEEPEST, loads, read

PACKAGE = Path(atm_export.__file__).parent
HOSTILE = {
    "nested": b'{"a":' * 100_000,
    "nested and whole": b"[" * 50 + b"]" * 50,
    "nested objects": b'{"a":' * 50 + b"1" + b"}" * 50,
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "too large a float": b'{"a": 1e999}',
    "too large a number": b'{"a": ' + b"9" * 30 + b"}",
    "too long a number": b'{"a": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"a": 1, "b": 2, "a": 3}',
    "half a surrogate": b'{"a": "\\ud800"}',
    "half a surrogate as a key": b'{"\\ud800": 1}',
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "no object": b"[1]",
    "a number": b"3",
    "nothing": b"",
    "half": b'{"a": [1, 2',
    "too long": b'{"a": "' + b"x" * 200 + b'"}',
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_is_refused(data: bytes, tmp_path: Path) -> None:
    most = 150 if len(data) == 209 else 2**20
    with pytest.raises(ValueError) as caught:
        loads(data, dict, most=most)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(RunFolderError, match=r"x\.json cannot be read \(.+\); do this"):
        read(path, RunFolderError, dict, fix="do this", most=most)


def test_what_is_taken() -> None:
    deep = '{"a": ' * (DEEPEST - 1) + "1" + "}" * (DEEPEST - 1)
    assert loads(deep, dict)["a"]
    assert loads('{"a": [1, -2.5, "é", null, true], "b": {}}'.encode(), dict) == {
        "a": [1, -2.5, "é", None, True],
        "b": {},
    }
    assert loads("[1]", list) == [1] and loads("[1]", object) == [1]


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "absent", "."):
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / name, DataError, dict)


def test_json_is_read_in_one_place() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "json":
                found.append((path.name, "from json import"))
            named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if named and node.value.id == "json" and node.attr in ("load", "loads", "JSONDecoder"):
                found.append((path.name, node.attr))
    assert found == [("strict_json.py", "loads")]
