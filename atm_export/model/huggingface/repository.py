"""Where a checkpoint's files lie: a folder, or a repository of the Hugging Face hub or its cache.

Weights are read from safetensors alone, never from a file that may hold code.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from atm_export.errors import ConfigError, WeightsError
from atm_export.model.hub import REPOSITORY, cache_only_without_network
from atm_export.shapes import Misfit, fields, matching, table
from atm_export.strict_json import read

HF = "hf:"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
MOST_SHARDS = 256
_FOLDER = re.compile(r"(\.{1,2}|~[\w.-]*)?[/\\].*|\.{1,2}|[A-Za-z]:[/\\].*", re.DOTALL)
_SHARDS = fields(
    {"weight_map": table(matching(r"[\w][\w.-]{0,127}\.safetensors", "a file in the same folder"))}
)
_CONVERT = (
    "import torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() for k, v in "
    f"torch.load('{PICKLE}', weights_only=True).items()}}, '{WEIGHTS}')"
)

Find = Callable[[str], Path | None]


@dataclass(frozen=True)
class Repository:
    """name: as it was given. find: a file by its name, None where there is none.
    fetch: a shell command that brings it into the current folder, and goes there."""

    name: str
    find: Find
    fetch: str

    def document(self, file: str) -> dict[str, Any] | None:
        """The JSON object in a file, None where there is none; ConfigError for what is none."""
        path = self.find(file)
        fix = "it is not as transformers saves it"
        return None if path is None else read(path, ConfigError, dict, fix=fix)


def opened(given: str) -> Repository:
    """The repository at OWNER/NAME, with @REVISION or without, or at a path that begins with ./,
    ../, ~/ or /. ConfigError for what is neither."""
    name = HF + given
    if not given.isprintable():
        raise ConfigError(f"{name!r}: the path holds what cannot be printed; rename the folder")
    if _FOLDER.fullmatch(given):
        return _folder(name, given)
    if not REPOSITORY.fullmatch(given) or ".." in given:
        raise ConfigError(
            f"{name}: give {HF}OWNER/NAME as the hub's address has it, or {HF}./FOLDER"
        )
    return _of_the_hub(name, given)


def _folder(name: str, given: str) -> Repository:
    try:
        folder = Path(given).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError) as error:  # names too long, nobody's home
        raise ConfigError(f"{name}: no such folder ({error})") from error
    if not there:
        raise ConfigError(f"{name}: no such folder")

    def find(file: str) -> Path | None:
        path = folder / file
        try:
            return path if path.is_file() else None
        except OSError as error:
            raise ConfigError(f"{name}: cannot read {file}: {error.strerror}") from error

    return Repository(name, find, f"cd {shlex.quote(str(folder))}")


def _of_the_hub(name: str, given: str) -> Repository:
    from huggingface_hub import hf_hub_download

    repository, _, revision = given.partition("@")

    def find(file: str) -> Path | None:
        try:
            with cache_only_without_network():
                return Path(hf_hub_download(repository, file, revision=revision or None))
        except Exception as error:  # any of a dozen network and hub errors
            if _is_absent(error, repository, file, revision or None):
                return None
            hint = "" if not Path(given).is_dir() else f"; the folder here is {HF}./{given}"
            raise ConfigError(
                f"{name}: {file} is neither in the hub's cache nor to be had "
                f"({type(error).__name__}){hint}"
            ) from error

    own = repository.partition("/")[2]
    at = f" --revision {revision}" if revision else ""
    return Repository(name, find, f"hf download {repository}{at} --local-dir {own} && cd {own}")


def _is_absent(error: Exception, repository: str, file: str, revision: str | None) -> bool:
    """Whether the repository is known not to have a file; an error may mean the network alone."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return True
    try:
        cached = try_to_load_from_cache(repository, file, revision=revision)
    except ValueError:  # no name of a repository
        return False
    return not (cached is None or isinstance(cached, str))  # the cache remembers what was not there


def weight_files(repository: Repository) -> list[Path]:
    """Its safetensors: one file, or those that an index names. WeightsError for want of them."""
    unknown: ConfigError | None = None
    try:
        if (whole := repository.find(WEIGHTS)) is not None:
            return [whole]
    except ConfigError as error:  # the hub's cache may hold the index all the same
        unknown = error
    try:
        index = repository.document(INDEX)
    except ConfigError as error:
        raise WeightsError(f"{unknown or error}; give --weights FILE") from error
    if index is None:
        raise WeightsError(
            f"{repository.name} has no {WEIGHTS}; where it has {PICKLE}, convert it: "
            f'{repository.fetch} && python -c "{_CONVERT}"; then export {HF}./FOLDER'
        )
    try:
        _SHARDS(index, "")
    except Misfit as misfit:
        raise WeightsError(f"{repository.name}: {INDEX}: {misfit}") from misfit
    names = sorted(set(index["weight_map"].values()))
    if not 0 < len(names) <= MOST_SHARDS:
        raise WeightsError(f"{repository.name}: {INDEX} names {len(names)} files, not 1 to 256")
    found = {name: repository.find(name) for name in names}
    if gone := [name for name, path in found.items() if path is None]:
        raise WeightsError(f"{repository.name}: {INDEX} names {gone[0]}, which is not there")
    return [path for path in found.values() if path is not None]


def read_tensors(files: list[Path], wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The wanted tensors of safetensors files, as float32; WeightsError for damaged files, names
    that come twice, and numbers that are no floats."""
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118  (no mapping)
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error
        for name, tensor in tensors.items():
            if name in found or not tensor.is_floating_point():
                what = "comes twice" if name in found else f"holds {tensor.dtype}, not floats"
                raise WeightsError(f"{path}: '{name}' {what}")
            found[name] = tensor.to(torch.float32)
    return found
