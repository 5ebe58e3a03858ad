"""Load checkpoints safely (no pickled code), strictly (every key), and finite."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from atm_export.errors import WeightsError

NESTED_KEYS = ("model", "state_dict_ema", "state_dict", "model_ema")


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth, .pt, .bin or .tar file by name, floats as float32.

    Looks under `model`, `state_dict_ema`, `state_dict`, `model_ema`; strips a leading `module.`.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}; give it with --weights FILE")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a table of tensors")
    tensors = {str(k).removeprefix("module."): v for k, v in content.items()}
    strange = [k for k, v in tensors.items() if not isinstance(v, Tensor)]
    if strange or not tensors:
        what = f"'{strange[0]}' is no tensor" if strange else "it is empty"
        raise WeightsError(f"{path} holds no table of tensors: {what}")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or needs code to be unpickled and is refused; "
            "convert it to safetensors where you trust it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{path} is not a whole PyTorch checkpoint ({type(error).__name__}); download it again"
        ) from error


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into `module`; every key and shape must match, every value be finite."""
    own = module.state_dict()
    problems = [
        _first("missing", [k for k in own if k not in tensors]),
        _first("unexpected", [k for k in tensors if k not in own]),
        _first(
            "misshapen",
            [
                f"{k} is {tuple(tensors[k].shape)}, the model has {tuple(own[k].shape)}"
                for k in own
                if k in tensors and tensors[k].shape != own[k].shape
            ],
        ),
    ]
    found = [p for p in problems if p]
    if found:
        raise WeightsError(f"{source} belongs to another architecture: {'; '.join(found)}")
    check_finite(tensors, source)
    module.load_state_dict(dict(tensors), strict=True)


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """WeightsError if any value is NaN or infinite."""
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise WeightsError(f"{source}: '{name}' has {bad} NaN or infinite values")


def _first(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{what} {', '.join(names[:2])}{more}"


def state_digest(module: nn.Module) -> str:
    """sha256 over names, shapes and bytes of a module's tensors, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def randomize(module: nn.Module, seed: int = 0, keep: Sequence[str] = ()) -> None:
    """Fill every parameter from a fixed seed, scaled as trained weights roughly are.

    keep: names of parameters that stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if name in keep:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2 and not name.endswith(("pos_embed", "_token", "latent")):
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
            elif name.endswith("gamma"):
                tensor.copy_(0.5 + 0.1 * noise)
            elif name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            else:
                tensor.copy_(0.02 * noise)
