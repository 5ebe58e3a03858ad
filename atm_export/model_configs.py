"""The configs of models, `export_configs/` and the user's, and the presets that searches found."""

from __future__ import annotations

import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from atm_export import loose_files, place
from atm_export.config import ModelConfig, Preset, TunedPresets
from atm_export.errors import ConfigError, unknown_name
from atm_export.methods import USUAL_METHOD, methods
from atm_export.settings import Settings, validated

SOURCES = {  # their families
    **{"timm:": "timm", "hf-hub:": "timm", "tv:": "torchvision", "hf:": "huggingface"}
}
PRESETS = "presets"  # a folder of what searches found, in a folder of configs
OTHER_CONFIGS = "set ATM_EXPORT_CONFIGS to a folder of yours"


def user_config_folder() -> Path:
    """Where a user's own configs and the presets of `tune` lie: $ATM_EXPORT_CONFIGS, else
    atm-export in the user's config folder."""
    given = os.environ.get("ATM_EXPORT_CONFIGS")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "atm-export"


def config_folders() -> list[Path]:
    """Folders that hold model configs: the user's, then the shipped ones."""
    shipped = Path(str(resources.files("atm_export"))) / "export_configs"
    if not shipped.is_dir():
        shipped = Path(__file__).resolve().parent.parent / "export_configs"
    return [user_config_folder(), shipped]


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot read {path}: {error.strerror}; set ATM_EXPORT_CONFIGS to a folder of yours"
    )


@cache
def _read_yaml(path: Path, kind: type[Settings]) -> Any:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings")
    return validated(kind, values, str(path))


def model_names() -> list[str]:
    """Every configured model, sorted."""
    return sorted({path.stem for folder in config_folders() for path in folder.glob("*.yaml")})


def file_name(model: str) -> str:
    """A model's name as the stem of a file."""
    return model.replace(":", "_").replace("/", "_").replace("\\", "_")


def preset_file(model: str) -> Path:
    """Where `tune` keeps the presets of a model that it found: beside the user's configs, which it
    never changes."""
    return user_config_folder() / PRESETS / f"{file_name(model)}.yaml"


def check_preset(model: str, name: str) -> None:
    """Before a long search: ConfigError or OutputError if its preset could not be written."""
    place.plain_name(name, "--name")
    if name in {**_written_config(model).presets, **_shipped_presets(model)}:
        raise ConfigError(f"--name {name}: {model} has a preset of that name; give another")
    path = preset_file(model)
    place.refuse_loss(path.parent, [path.name], remedy=OTHER_CONFIGS)


def add_user_preset(model: str, name: str, preset: Preset) -> Path:
    """Write `preset` into the user's preset file of `model`; returns its path. An earlier preset of
    that name that tune wrote is replaced. Raises ConfigError, OutputError."""
    check_preset(model, name)
    presets = _tuned_presets(model) | {name: preset}
    values = {name: _as_written(one) for name, one in presets.items()}
    path = preset_file(model)
    text = yaml.safe_dump({"presets": values}, sort_keys=False)
    loose_files.put_files(path.parent, {path.name: text.encode()}, OTHER_CONFIGS)
    _read_yaml.cache_clear()
    return path


def _as_written(preset: Preset) -> dict[str, Any]:
    values = preset.model_dump(mode="json", exclude_defaults=True)
    return {name: value for name, value in values.items() if value is not None}


def load_model_config(name: str) -> ModelConfig:
    """The config of `name`, or of any model of one of SOURCES; with the presets that were found for
    it: those that ship, and those of tune."""
    config = _written_config(name)
    found = {**_tuned_presets(name), **_shipped_presets(name)}
    presets = {**config.presets, **found, **config.presets}
    return config.model_copy(update={"presets": presets}) if found else config


def _written_config(name: str) -> ModelConfig:
    source = next((prefix for prefix in SOURCES if name.startswith(prefix)), None)
    if source is not None:
        own = user_config_folder() / f"{file_name(name)}.yaml"
        if _there(own):
            return _read_yaml(own, ModelConfig)
        return ModelConfig(
            family=SOURCES[source],
            architecture=name if source == "hf-hub:" else name.removeprefix(source),
            default_preset="default",
            presets={"default": Preset(settings=methods[USUAL_METHOD].usual)},
        )
    for folder in config_folders():
        path = folder / f"{name}.yaml"
        if path.parent == folder and _there(path):
            return _read_yaml(path, ModelConfig)
    raise unknown_name(
        *("model", name, model_names()),
        "or timm:NAME, hf-hub:OWNER/NAME for any plain timm VisionTransformer, tv:NAME for "
        "torchvision's, hf:OWNER/NAME or hf:./FOLDER for checkpoints of transformers",
    )


def _shipped_presets(model: str) -> dict[str, Preset]:
    path = config_folders()[-1] / PRESETS / preset_file(model).name
    return dict(_read_yaml(path, TunedPresets).presets) if path.is_file() else {}


def _tuned_presets(model: str) -> dict[str, Preset]:
    path = preset_file(model)
    return dict(_read_yaml(path, TunedPresets).presets) if path.is_file() else {}


def find_preset(name: str, model: str, config: ModelConfig) -> Preset:
    """A preset by name; ConfigError offers the nearest."""
    if name not in config.presets:
        if not config.presets:
            raise ConfigError(f"model '{model}' has no presets; give the method's settings")
        raise unknown_name(f"preset of {model}", name, config.presets)
    return config.presets[name]


def nearest_preset(
    gflops: float, model: str, config: ModelConfig, method: str = USUAL_METHOD
) -> str:
    """The method's preset with the most GFLOPs at or below `gflops`; rows that are fine-tuned, or
    whose settings were fitted to their GFLOPs, are left out."""
    known = {n: p for n, p in config.presets.items() if p.method == method}
    known = {n: p for n, p in known.items() if not (p.fine_tuned or p.fitted)}
    rows = {name: preset.gflops for name, preset in known.items() if preset.gflops}
    if not rows:
        raise ConfigError(
            f"model '{model}' has no presets with GFLOPs{_of(method)}; --gflops cannot choose one"
        )
    if not gflops > 0:
        raise ConfigError(f"--gflops {gflops:g}: give a number above 0")
    fitting = [(value, name) for name, value in rows.items() if value <= gflops]
    if not fitting:
        low = min(rows.values())
        raise ConfigError(f"--gflops {gflops:g}: the lowest preset of {model} needs {low:g} GFLOPs")
    return max(fitting)[1]


def _of(method: str) -> str:
    return "" if method == USUAL_METHOD else f" of method {method}"
