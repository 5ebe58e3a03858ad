"""What a method does in one block, for the eager reference and for the export alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from atm_export.errors import ConfigError


class BlockRule(ABC):
    """The rule of one block: a frozen value that compares by what it does."""

    @property
    @abstractmethod
    def adaptive(self) -> bool:
        """Whether the number of tokens that stay is decided at run time."""

    @property
    def idle(self) -> bool:
        """Whether it can never reduce anything."""
        return False

    def frozen(self, count: int) -> Self:
        """The same rule, with `count` tokens removed whatever the image."""
        raise ConfigError("this method has no frozen form")
