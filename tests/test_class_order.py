"""Class folders named by numbers: numbered as they mean, or refused."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from atm_export.errors import ClassOrderError, ConfigError, DataError
from atm_export.measure.data.classes import Numbering, natural
from atm_export.measure.data.samples import open_samples
from atm_export.measure.data.whole import DataPlace, open_set
from tests.data_sets import by_shade, save

TEN = [f"class{i}" for i in range(1, 11)]


def table(
    names: list[str], classes: int, own: list[str] | None = None, order: str | None = None
) -> dict[str, int]:
    folders = [PurePosixPath(name) for name in names]
    return Numbering(classes, own, order).table(folders, "photos")  # type: ignore[arg-type]


def test_numbers_are_the_classes_of_a_model_of_1000() -> None:
    numbers = [str(i) for i in range(1000)]
    own = [f"word {i}" for i in range(1000)]
    assert table(numbers, 1000) == table(numbers, 1000, own) == {n: int(n) for n in numbers}
    assert table(["999", "5", "17"], 1000) == {"999": 999, "5": 5, "17": 17}
    assert table(["0005", "0017"], 1000) == {"0005": 5, "0017": 17}
    with pytest.raises(DataError, match="'05' and '5' are one class number"):
        table(["5", "05"], 1000)


def test_numbers_from_one_on_are_ambiguous() -> None:
    numbers = [str(i) for i in range(1, 1001)]
    with pytest.raises(DataError, match="order of the class folders is ambiguous"):
        table(numbers, 1000)
    assert table(numbers, 1000, order="natural") == {n: int(n) - 1 for n in numbers}
    padded = [f"{i:04d}" for i in range(1, 1001)]
    assert table(padded, 1000) == {n: int(n) - 1 for n in padded}


def test_class1_to_class10_names_both_readings() -> None:
    with pytest.raises(DataError) as caught:
        table(TEN, 10)
    text = str(caught.value)
    assert "class 1 is 'class10' by name (as torchvision trains)" in text
    assert "'class2' in natural order (as timm trains)" in text
    assert "--class-order name, natural" in text and "--labels FILE" in text
    assert table(TEN, 10, order="name")["class10"] == 1
    assert table(TEN, 10, order="natural") == {name: i for i, name in enumerate(TEN)}
    assert table(TEN[:9], 9) == {name: i for i, name in enumerate(TEN[:9])}


def test_numbers_of_another_model() -> None:
    twelve = [str(i) for i in range(12)]
    with pytest.raises(DataError, match="ambiguous"):
        table(twelve, 12)
    assert table(twelve, 12, order="natural") == table(twelve, 12, order="index")
    assert table(twelve[:10], 10) == {n: int(n) for n in twelve[:10]}
    with pytest.raises(DataError, match="--class-order index if the names are class numbers"):
        table(["3", "7"], 12)
    assert table(["3", "7"], 12, order="index") == {"3": 3, "7": 7}
    for strange in ("12", "cat", "-1", "٣"):
        with pytest.raises(DataError, match="is no class number of a model of 12"):
            table(["3", strange], 12, order="index")


def test_upper_case_is_an_order_of_its_own() -> None:
    with pytest.raises(DataError, match="class 0 is 'Zebra' by name"):
        table(["Zebra", "ant"], 2)
    assert table(["Zebra", "ant"], 2, order="natural") == {"ant": 0, "Zebra": 1}
    assert sorted(["b10", "b9", "B1"], key=natural) == ["B1", "b9", "b10"]


def test_names_of_the_model_decide() -> None:
    own = ["bee", "crane", "cat", "crane"]
    assert table(["cat", "bee"], 4, own) == {"cat": 2, "bee": 0}
    with pytest.raises(DataError, match="two classes 'crane'"):
        table(["cat", "crane"], 4, own)
    with pytest.raises(DataError, match=r"'ant' is no class of the model \('bee'"):
        table(["ant", "dog", "eel", "fox"], 4, own)
    assert table(["ant", "dog", "eel", "fox"], 4, own, "name")["fox"] == 3


def test_only_folders_side_by_side_have_an_order(tmp_path: Path) -> None:
    save(tmp_path / "cats" / "a.png", 1)
    save(tmp_path / "cats" / "young" / "b.png", 2)
    with pytest.raises(DataError, match=r"side by side .* 'cats' and 'cats/young'"):
        open_samples(str(tmp_path), 2)


def test_empty_class_folders_keep_their_number(tmp_path: Path) -> None:
    save(tmp_path / "val" / "ant" / "a.png", 1)
    (tmp_path / "val" / "bee").mkdir()
    save(tmp_path / "val" / "cat" / "a.png", 2)
    (tmp_path / "val" / ".cache").mkdir()
    assert by_shade(open_samples(str(tmp_path), 3)) == {1: (0,), 2: (2,)}
    with pytest.raises(DataError, match=r"3 class folders .* 1 of them without images"):
        open_samples(str(tmp_path), 2)


def test_orders_from_the_command_line_reach_the_folders(tmp_path: Path) -> None:
    for shade, name in enumerate(TEN):
        save(tmp_path / name / "a.png", shade)
    by_name = by_shade(open_samples(str(tmp_path), 10, order="name"))
    assert by_name[9] == (1,) and by_name[1] == (2,)
    assert by_shade(open_samples(str(tmp_path), 10, order="natural"))[9] == (9,)
    for nothing in ("", " "):
        with pytest.raises(ConfigError, match="is empty"):
            open_samples(nothing, 10)


def test_tune_does_not_drop_labels_that_are_ambiguous(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(backbone=SimpleNamespace(classes=10, ranks="logits"), labels=None)

    def found(order: Any = None) -> Any:
        return open_set(DataPlace(str(tmp_path), None, order), model)

    for shade, name in enumerate(TEN):
        save(tmp_path / name / "a.png", shade)
    with pytest.raises(ClassOrderError, match="--class-order"):
        found()
    samples, labelled = found("natural")
    assert labelled and by_shade(samples)[9] == (9,)
    save(tmp_path / "more" / "a.png", 10)
    samples, labelled = found()  # eleven folders are no classes of ten
    assert not labelled and len(samples) == 11
    with pytest.raises(DataError, match="11 class folders"):
        found("natural")
