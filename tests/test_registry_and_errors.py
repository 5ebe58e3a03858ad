"""Names that are taken or unknown, and exit codes that never change."""

from __future__ import annotations

import inspect
import re

import pytest

from atm_export import errors
from atm_export.errors import AtmExportError, ConfigError, RunFolderError, unknown_name
from atm_export.model_configs import load_model_config, model_names
from atm_export.registry import Registry

CODES = {
    "AtmExportError": 1,
    "ConfigError": 2,
    "WeightsError": 3,
    "UnsupportedModelError": 4,
    "ParityError": 5,
    "GraphLintError": 6,
    "OutputError": 7,
    "MissingDependencyError": 8,
    "DataError": 9,
    "RunFolderError": 10,
    "EngineBuildError": 11,
    "NonFiniteError": 12,
}


def test_exit_codes_are_what_they_always_were() -> None:
    kinds = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    found = {name: k.exit_code for name, k in kinds.items() if issubclass(k, AtmExportError)}
    refined = [n for n, k in kinds.items() if RunFolderError in k.__mro__[1:]]
    assert len(refined) == 10 and {found.pop(name) for name in refined} == {10}
    assert found.pop("ImageSizeError") == CODES["DataError"]
    assert found.pop("ClassOrderError") == CODES["DataError"]
    assert found.pop("OtherWeightsError") == CODES["WeightsError"]
    assert found == CODES


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"(\w+Error)\s+(\d+)", errors.__doc__ or "")
    assert {name: int(code) for name, code in drawn} == CODES


def test_the_help_lists_every_code() -> None:
    from atm_export.cli import HELP

    listed = {int(code) for code in re.findall(r"(?<![\w.])(\d+) [a-z]", HELP.split("codes:")[1])}
    assert listed == {0, *range(2, 13), 130}


def test_an_unknown_name_offers_the_nearest_or_all() -> None:
    error = unknown_name("fruit", "aple", ["apple", "pear", "plum"])
    assert isinstance(error, ConfigError)
    assert str(error) == "unknown fruit 'aple'; nearest: apple, plum, pear"
    assert str(unknown_name("fruit", "xyz", ["b", "a"], "or none")) == (
        "unknown fruit 'xyz'; known: a, b; or none"
    )
    many = str(unknown_name("number", "xyz", [f"{i:03d}" for i in range(40)]))
    assert many.endswith("011, ... (40 in all)")


def test_a_registry_refuses_duplicates_and_lists_what_it_knows() -> None:
    registry: Registry[int] = Registry("thing")
    assert registry.add("one", 1) == 1
    registry.add("two", 2)
    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        registry.add("one", 3)
    assert registry["one"] == 1 and list(registry) == ["one", "two"] and "two" in registry
    with pytest.raises(ConfigError, match="unknown thing 'three'; known: one, two"):
        registry["three"]
    registry.remove("two")
    assert "two" not in registry


@pytest.mark.parametrize("name", model_names())
def test_the_file_of_every_configured_family_registers_it(name: str) -> None:
    from atm_export.model import SHIPPED, zoo
    from atm_export.model.backbone import families

    family = load_model_config(name).family
    assert family in SHIPPED
    zoo._register_shipped(family)
    assert callable(families[family])
