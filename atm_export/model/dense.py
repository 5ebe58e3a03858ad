"""Which blocks' patch tokens a model gives where the task is dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError
from atm_export.tasks.dense import Dense
from atm_export.tasks.stated import MOST_OUTPUTS


@dataclass(frozen=True)
class Patches:
    """layers: blocks, from 0, in order, after which patches are taken, an output each; (): after
    the last, in one."""

    layers: tuple[int, ...] = ()


def patches_of(spec: ModelSpec, depth: int) -> Patches | None:
    """What patches are taken, where that is the task; ConfigError for blocks that a model of
    `depth` blocks lacks, or for too many."""
    if spec.task != Dense.name:
        return None
    layers = spec.layers or ()
    if beyond := [i for i in layers if i >= depth]:
        raise ConfigError(
            f"--layers {beyond[0]}: the blocks of {spec.name} are 0 to {depth - 1}, counted from 0"
        )
    if twice := [i for i in layers if layers.count(i) > 1]:
        raise ConfigError(f"--layers names {twice[0]} twice")
    if len(layers) > MOST_OUTPUTS:
        raise ConfigError(
            f"--layers names {len(layers)} blocks, and a graph gives {MOST_OUTPUTS} outputs at most"
        )
    return Patches(tuple(sorted(layers)))


def notes_of_patches(layers: Sequence[int]) -> tuple[str, ...]:
    """What a report should say of the answer."""
    after = f"blocks {', '.join(map(str, layers))} (from 0)" if layers else "the last block"
    return (
        f"patches: the tokens after {after}, each through the final norm; every patch has the "
        "token that it was merged into",
    )
