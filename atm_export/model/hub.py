"""Models of the Hugging Face hub in timm's layout: `hf-hub:OWNER/NAME`, or `@REVISION` behind it.

A repository says in config.json which timm model it is, with which arguments and which input; its
weights are read from model.safetensors, never from a file that may hold code.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from timm.models import PretrainedCfg

from atm_export.errors import AtmExportError, ConfigError, WeightsError
from atm_export.strict_json import read

HUB = "hf-hub:"
REPOSITORY = re.compile(
    r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,128})?", re.ASCII
)
_NAME = re.compile(r"[a-z0-9_]{1,128}", re.ASCII)
# Arguments of a model that shape it; others load files or run code, or are nobody's to say.
_SHAPES = frozenset(
    (
        *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth"),
        *(
            "num_heads",
            "mlp_ratio",
            "qkv_bias",
            "qk_norm",
            "init_values",
            "class_token",
            "pos_embed",
        ),
        *("no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm", "dynamic_img_size"),
        *("dynamic_img_pad", "act_layer", "mlp_layer", "norm_layer", "scale_attn_norm"),
        *("scale_mlp_norm", "proj_bias", "pool_include_prefix", "weight_init", "drop_rate"),
    )
)


@dataclass(frozen=True)
class HubModel:
    """What a repository's config.json says: a timm architecture, its arguments, input and head."""

    architecture: str
    arguments: Mapping[str, Any]
    cfg: PretrainedCfg


def described(name: str) -> HubModel:
    """The model at hf-hub:OWNER/NAME. Raises ConfigError for a name or a config.json that is none,
    and where it can be had neither from the hub nor from its cache."""
    path = _fetched(name, "config.json", ConfigError, "")
    told = read(path, ConfigError, dict, fix="it is no config of a timm model")
    cfg = told.get("pretrained_cfg", told)
    architecture, arguments = told.get("architecture"), told.get("model_args", {})
    if not isinstance(cfg, dict) or not isinstance(arguments, dict):
        raise ConfigError(f"{name}: its config.json is not that of a timm model")
    if not isinstance(architecture, str) or not _NAME.fullmatch(architecture):
        hint = f"; give hf:{name.removeprefix(HUB)}" if "model_type" in told else ""
        raise ConfigError(f"{name}: its config.json names no timm architecture{hint}")
    if strange := sorted(arguments.keys() - _SHAPES):
        raise ConfigError(f"{name}: its config.json has the model argument '{strange[0]}'")
    known = {field.name for field in fields(PretrainedCfg)} - {"url", "file", "state_dict"}
    values = {key: _frozen(value) for key, value in cfg.items() if key in known}
    if "num_classes" in told:
        values["num_classes"] = told["num_classes"]
    values |= {"custom_load": False, "architecture": architecture}
    return HubModel(architecture, arguments, PretrainedCfg(**values))


def weights_of(name: str) -> Path:
    """Its model.safetensors; WeightsError where there is none."""
    return _fetched(name, "model.safetensors", WeightsError, "; give --weights FILE")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _fetched(name: str, file: str, kind: type[AtmExportError], remedy: str) -> Path:
    """A file of a repository, from the hub's cache where there is no network."""
    from huggingface_hub import hf_hub_download

    if not REPOSITORY.fullmatch(name.removeprefix(HUB)) or ".." in name:
        raise ConfigError(f"{name}: give {HUB}OWNER/NAME, as the hub's address has it")
    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        with cache_only_without_network():
            return Path(hf_hub_download(repository, file, revision=revision or None))
    except Exception as error:  # any of a dozen network and hub errors, all with the same remedy
        raise kind(
            f"{name}: {file} is neither in the hub's cache nor to be had "
            f"({type(error).__name__}){remedy}"
        ) from error


@contextmanager
def cache_only_without_network() -> Iterator[None]:
    """Where the hub's host does not resolve, look in the local cache alone, without retries."""
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    host = urlsplit(constants.ENDPOINT).hostname
    before = constants.HF_HUB_OFFLINE
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
