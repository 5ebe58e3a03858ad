"""Model configs: every row of the paper is a preset, and bad settings name their field."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from atm_export.choice import Choice
from atm_export.config import FORMAT_2, ModelConfig, Preset, RunConfig, exported_config, stamped
from atm_export.errors import ConfigError, ManifestError
from atm_export.methods.atm import USUAL, AtmSettings, OperatingPoint
from atm_export.methods.given import method_settings
from atm_export.methods.tome import TomeSettings
from atm_export.model_configs import find_preset, load_model_config, model_names, nearest_preset
from atm_export.resolving import budget_of, default_out, resolve
from atm_export.settings import validated
from tests.shared_data import shared

PAPER_MODELS = (
    *("deit_t", "deit_s", "deit_b", "lvvit_t", "lvvit_s", "lvvit_m"),
    *("t2t_vit_t_14", "t2t_vit_t_19", "mae_vit_b"),
)


def test_every_row_of_the_paper_is_a_preset() -> None:
    with shared("paper", "atm_operating_points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 150
    for row in rows:
        config = load_model_config(row["model"])
        if not row["alpha"]:
            assert config.paper is not None
            assert config.paper.gflops == float(row["gflops"])
            assert config.paper.top1 == float(row["top1_percent"])
            continue
        wanted = {
            "alpha": float(row["alpha"]),
            "beta": float(row["beta"]),
            "theta_min": float(row["theta_min"]),
            "split": None,
            "table": row["table"],
            "gflops": float(row["gflops"]),
            "top1": float(row["top1_percent"]),
            "fine_tuned": row["table"] == "A3",
        }
        name = f"{row['table'].lower()}-{float(row['gflops']):.2f}"
        assert config.presets[name].model_dump() == wanted


def test_all_models_of_the_paper_and_the_demo_are_configured() -> None:
    assert set(model_names()) == {*PAPER_MODELS, "demo"}


@pytest.mark.parametrize("name", [*PAPER_MODELS, "demo"])
def test_defaults_are_lossless_rows_of_unchanged_weights(name: str) -> None:
    config = load_model_config(name)
    assert config.default_preset is not None
    preset = config.presets[config.default_preset]
    assert not preset.fine_tuned
    if config.paper is not None:
        assert preset.top1 is not None and preset.top1 >= config.paper.top1 - 0.11


def test_nearest_preset_is_at_or_below_and_never_fine_tuned() -> None:
    config = load_model_config("deit_s")
    assert nearest_preset(3.2, "deit_s", config) == "a2-3.13"
    assert nearest_preset(3.23, "deit_s", config) == "a2-3.23"
    assert nearest_preset(99, "deit_s", config) == "a2-3.67"
    with pytest.raises(ConfigError, match=r"lowest preset of deit_s needs 2\.56"):
        nearest_preset(1, "deit_s", config)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'deit_xs'.*deit_s"):
        load_model_config("deit_xs")
    with pytest.raises(ConfigError, match=r"a2-0\.90"):
        find_preset("a2-0.9", "deit_t", load_model_config("deit_t"))


def test_any_timm_name_gets_the_default_point() -> None:
    config = load_model_config("timm:vit_small_patch32_224")
    assert config.presets == {"default": Preset(settings=USUAL)}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"alpha": 1.01, "beta": 0, "theta_min": 0.8}, "alpha"),
        ({"alpha": 1, "beta": -0.1, "theta_min": 0.8}, "beta"),
        ({"alpha": 1, "beta": 0, "theta_min": float("nan")}, "theta_min"),
        ({"alpha": 1, "beta": 0, "theta_min": 0.8, "split": -1}, "split"),
        ({"alpha": 1, "beta": 0, "theta_min": 0.8, "gamma": 1}, "gamma"),
        ({"alpha": 1, "beta": 0}, "theta_min"),
    ],
)
def test_impossible_operating_points_name_the_field(values: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validated(OperatingPoint, values, "operating point")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "tome"}, "needs -r"),
        ({"name": "tome", "r": (-1,)}, r"r\.0"),
        ({"name": "atm", "r": (8,)}, "method: r: Extra inputs"),
        ({"name": "tome", "r": (8,), "merge": "frozen"}, "merge: Extra inputs"),
        ({"name": "atn"}, "nearest: ats, atm"),
    ],
)
def test_impossible_methods_say_why(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        method_settings(values)


def test_a_misspelt_key_in_a_config_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("family: timm\narchitecture: a\nprests: {}\n")
    with pytest.raises(ConfigError, match="prests"):
        load_model_config("mine")
    (tmp_path / "broken.yaml").write_text("family: [timm\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_model_config("broken")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Preset(settings=USUAL).gflops = 0.5  # type: ignore[misc]
    with pytest.raises(ValueError, match="default_preset"):
        ModelConfig(family="timm", architecture="a", default_preset="none")


def test_resolve_applies_presets_and_overrides() -> None:
    config = resolve(Choice(model="deit_s"))
    assert config.method.preset == "a2-3.23"
    assert config.method.point == OperatingPoint(alpha=0.985, beta=0.045, theta_min=0.88)
    changed = resolve(Choice(model="deit_s", preset="a2-3.13", theta_min=0.9, split=6))
    assert changed.method.preset is None
    assert changed.method.point == OperatingPoint(alpha=1, beta=0.03, theta_min=0.9, split=6)
    assert default_out(config) == Path("build/deit_s-a2-3.23")
    assert (
        default_out(resolve(Choice(model="deit_s", method="tome", r="8"))).name == "deit_s-tome-r8"
    )


def test_a_config_survives_its_yaml() -> None:
    import yaml

    config = resolve(Choice(model="deit_t", method="tome", r="16,14,13,11,10,8,7,5,4,2,1,0"))
    assert RunConfig.model_validate(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (Choice(model="deit_s", preset="a2-3.23", gflops=3), "give one"),
        (Choice(model="deit_s", method="tome", r="8", alpha=0.9), "--alpha belongs to"),
        (Choice(model="deit_s", method="tome", r="8;9"), "whole numbers"),
        (Choice(model="deit_s", opset=17), "20 to 23"),
        (Choice(model="deit_s", image_size=-1), "image_size"),
    ],
)
def test_contradictions_are_refused(choice: Choice, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve(choice)


def test_options_of_an_architecture_are_given_by_name() -> None:
    config = resolve(Choice(model="lvvit_s", option=("aux_head=always", "classes=10")))
    assert config.model.config.options == {"aux_head": "always", "classes": 10}
    assert default_out(config).name == "lvvit_s-a4-4.73-aux_head-always-classes-10"
    assert default_out(resolve(Choice(model="lvvit_s"))).name == "lvvit_s-a4-4.73"
    assert resolve(Choice(model="deit_t", option=("num_classes=37",))).model.config.options == {
        "num_classes": 37
    }


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("aux_head", "give NAME=VALUE"),
        ("=1", "give NAME=VALUE"),
        ("classes=", "give NAME=VALUE"),
        ("classes=[1", "no value"),
    ],
)
def test_malformed_options_say_why(option: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve(Choice(model="lvvit_s", option=(option,)))


def test_timm_models_take_no_option_that_loads_files() -> None:
    with pytest.raises(ConfigError, match="unknown option of timm models 'checkpoint_path'"):
        resolve(Choice(model="timm:vit_tiny_patch16_224", option=("checkpoint_path=x.pth",)))


def test_the_demo_has_no_options() -> None:
    with pytest.raises(ConfigError, match="the demo has no options"):
        resolve(Choice(model="demo", option=("x=1",)))


@pytest.mark.parametrize("choice", [{}, {"method": "tome", "r": "8"}, {"method": "none"}])
def test_a_method_as_format_2_wrote_it_is_read(choice: dict[str, str]) -> None:
    """One shape for all methods, with nulls; graphs still state that."""
    config = resolve(Choice(model="demo", **choice))
    flat = stamped(config)
    assert list(flat["method"]) == list(FORMAT_2)
    assert exported_config(flat, "here") == config
    assert exported_config(config.model_dump(mode="json"), "here") == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "halved"}, "here: method: unknown method 'halved'"),
        ({"r": [8]}, "method: r: Extra inputs"),
        ({"name": "tome"}, "method: point: Extra inputs"),
        ({"name": None}, "name: give one of atm"),
    ],
)
def test_a_method_that_cannot_be_meant_is_refused(change: dict[str, Any], says: str) -> None:
    flat = stamped(resolve(Choice(model="demo")))
    flat["method"] |= change
    with pytest.raises(ManifestError, match=says):
        exported_config(flat, "here")


def test_set_gives_any_setting_of_a_method() -> None:
    found = resolve(Choice(model="demo", settings=("theta_min=0.9", "merge=per-image"))).method
    assert isinstance(found, AtmSettings) and found.point is not None
    assert found.merge == "per-image" and found.preset is None
    assert found.point.model_dump() == {
        "alpha": 1.0,
        "beta": 0.035,
        "theta_min": 0.9,
        "split": None,
    }
    same = resolve(Choice(model="demo", theta_min=0.9, merge="per-image")).method
    assert same == found
    tome = resolve(Choice(model="demo", method="tome", settings=("r=3,2", "proportional=false")))
    assert isinstance(tome.method, TomeSettings)
    assert tome.method.r == (3, 2) and tome.method.proportional is False
    assert resolve(Choice(model="demo", method="tome", settings=("r=4",))).method == (
        resolve(Choice(model="demo", method="tome", r="4")).method
    )


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"settings": ("thetamin=1",)}, "unknown setting of method atm 'thetamin'; nearest: theta"),
        ({"settings": ("alpha=1", "alpha=1")}, "given twice"),
        ({"settings": ("alpha=1",), "alpha": 0.9}, "--alpha and --set alpha=... say the same"),
        ({"settings": ("alpha",)}, "give NAME=VALUE"),
        ({"settings": ("alpha=[",)}, "is no value"),
        ({"settings": ("alpha=2",)}, "alpha"),
        ({"method": "none", "settings": ("proportional=1",)}, "method none has no settings"),
        ({"method": "tome", "r": "1", "settings": ("r=1",)}, "-r and --set r=... say the same"),
        ({"method": "tome", "settings": ("r=1,2", "schedule=decreasing")}, "of one number"),
        ({"settings": ("merge=adaptive",), "calibrate": "."}, "--calibrate belongs to --merge"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(choice: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        resolve(Choice(model="demo", **choice))


def test_a_preset_names_its_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path))
    text = (
        "family: demo\narchitecture: demo\ndefault_preset: lossless\npresets:\n"
        "  lossless: {alpha: 1.0, beta: 0.035, theta_min: 0.88}\n"
        "  static: {method: tome, settings: {r: [8]}, gflops: 0.1}\n"
    )
    (tmp_path / "own.yaml").write_text(text)
    found = resolve(Choice(model="own", preset="static"))
    assert found.method == TomeSettings(r=(8,), preset="static")
    assert default_out(found).name == "own-tome-r8"
    given = resolve(Choice(model="own", preset="static", settings=("schedule=decreasing",)))
    assert isinstance(given.method, TomeSettings) and given.method.schedule == "decreasing"
    assert given.method.preset is None and given.method.r == (8,)
    fewer = resolve(Choice(model="own", preset="static", r="4")).method
    assert fewer == TomeSettings(r=(4,))
    nearest = resolve(Choice(model="own", method="tome", gflops=0.2)).method
    assert nearest == TomeSettings(r=(8,), preset="static")
    with pytest.raises(ConfigError, match=r"lowest preset of own needs 0\.1 GFLOPs"):
        resolve(Choice(model="own", method="tome", gflops=0.05))
    assert resolve(Choice(model="own")).method.name == "atm"
    (tmp_path / "other.yaml").write_text(text.replace("preset: lossless", "preset: static"))
    assert resolve(Choice(model="other")).method == TomeSettings(r=(8,), preset="static")
    assert resolve(Choice(model="other", method="tome")).method.preset == "static"
    assert resolve(Choice(model="other", preset="lossless")).method.name == "atm"
    with pytest.raises(ConfigError, match="alpha"):
        resolve(Choice(model="other", method="atm"))
    with pytest.raises(ConfigError, match="--preset static is one of --method tome, not of atm"):
        resolve(Choice(model="own", preset="static", method="atm"))
    assert budget_of(Choice(model="own", gflops=0.1)) is not None  # no preset says what it costs
    assert budget_of(Choice(model="own", method="tome", gflops=0.2)) is None
    (tmp_path / "bad.yaml").write_text(text.replace("r: [8]", "r: [-8]"))
    with pytest.raises(ConfigError, match=r"r\.0"):
        resolve(Choice(model="bad"))


@pytest.mark.parametrize(
    ("preset", "says"),
    [
        ("{alpha: 2, beta: 0, theta_min: 1}", "alpha: Input should be less than or equal to 1"),
        ("{alpha: 1, beta: 0, theta_min: 1, gflop: 3}", "gflop: Extra inputs"),
        ("{alpha: 1, beta: 0}", "theta_min: Field required"),
        ("{method: tme, settings: {r: 8}}", "unknown method 'tme'; nearest: tome"),
        ("{method: tome, r: 8}", "presets.a.settings: Field required"),
        ("{method: tome, settings: 8}", "valid dictionary"),
        ("{method: [tome], settings: {}}", "method: Input should be a valid string"),
    ],
)
def test_a_preset_that_cannot_be_meant_is_named(
    preset: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path))
    (tmp_path / "own.yaml").write_text(f"family: demo\narchitecture: a\npresets:\n  a: {preset}\n")
    with pytest.raises(ConfigError, match=r"own\.yaml: presets\.a\.") as error:
        load_model_config("own")
    assert says in str(error.value)


def test_a_preset_survives_its_file() -> None:
    for preset in (Preset(settings=USUAL), Preset(method="tome", settings={"r": (8, 4)})):
        assert Preset.model_validate(preset.model_dump(mode="json")) == preset
    assert Preset(settings=USUAL).model_dump()["alpha"] == 1.0
