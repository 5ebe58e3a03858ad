"""What a method does in one block, for the eager reference and for the export alike.

A rule is a frozen value. The reference asks it to `decide` and to `reduce`; the export-friendly
twin asks it to `apply` both at once, in operations that have an ONNX. Nothing here imports torch:
rules do where they compute. A rule that is `before_attention` merges the attention map too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from atm_export.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

    from atm_export.methods.groups import Shares

Signal = Literal["key_metric", "keys", "values", "attention", "class_attention"]


@dataclass(frozen=True)
class Signals:
    """What the reference knows of a batch between attention and MLP, or before the attention is
    applied (`before_attention`).

    keys, values [B, H, N, d]; attention [B, H, N, N]: softmax weights, query first; tokens
    [B, N, D]: the residual stream, attention added where it was applied; sizes [B, N, 1]: merging
    sizes; where [B, N0]: places of the embedded tokens, -1 where one was dropped. prefix: leading
    tokens that stay, in front. class_attention [B, N]: the first token's row of attention, mean
    over heads. attention and class_attention are None where the rule does not ask for them.
    margins: whether anything will ask how firm the decision was; else that may be NaN.
    """

    keys: Tensor
    values: Tensor
    attention: Tensor | None
    tokens: Tensor
    sizes: Tensor
    places: Callable[[], Tensor]
    prefix: int
    class_attention: Tensor | None = None
    margins: bool = True

    @property
    def where(self) -> Tensor:
        return self.places()


class Decision(ABC):
    """What a block decided, before it is done."""

    @abstractmethod
    def margin(self) -> float:
        """The least change of a score, in a unit where FP32 noise is about 1e-6 (a cosine), that
        alters the decision; 0 where scores tie."""


@dataclass(frozen=True)
class Reduced:
    """Tokens [B, n, D], merging sizes [B, n, 1], and places: where each old token went [B, N]
    (int64; -1: dropped), or what computes that once somebody asks."""

    tokens: Tensor
    sizes: Tensor
    places: Tensor | Callable[[], Tensor]

    @property
    def moved_to(self) -> Tensor:
        return self.places() if callable(self.places) else self.places


@dataclass(frozen=True)
class GraphSignals:
    """What the twin knows, and will be translated to ONNX; signals not asked for are None.

    tokens [B, n, D] (None in a last block whose head reads the prefix alone, where the rule
    `spares_tokens`); sizes [B, n, 1] (None: all 1; padding: 0); key_metric [B, n, d]: keys summed
    over heads, L2-normalised; keys, values [B, n, H, d]; attention [B, H, n, n];
    class_attention [B, n] and where as in `Signals`. constants: what the rule's `constants` gave.
    most: tokens that are embedded.
    """

    tokens: Tensor | None
    sizes: Tensor | None
    where: Tensor
    prefix: int
    most: int
    constants: Mapping[str, Tensor]
    key_metric: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    attention: Tensor | None = None
    class_attention: Tensor | None = None


@dataclass(frozen=True)
class GraphReduced:
    """tokens [B, m, D], sizes [B, m, 1] (None: as they were, all 1), moved_to [B, n], and the
    number of tokens that remain ([1]; [B] where images differ; None: what `tokens_after` says).
    shares: of a rule that is `before_attention`, by which the queries of its map are averaged."""

    tokens: Tensor
    sizes: Tensor | None
    moved_to: Tensor
    remaining: Tensor | None = None
    shares: Shares | None = None


@dataclass(frozen=True)
class Extreme:
    """The rule at an end of what it can decide, and what its constants hold then."""

    rule: BlockRule
    constants: Mapping[str, Any] = field(default_factory=dict)


class NotFollowed(Exception):
    """The maps are not what any choice that this rule may take gives."""


class BlockRule(ABC):
    """The rule of one block: a frozen value that compares by what it does.

    asks: signals that it needs, beside tokens, sizes and places. drops: tokens may vanish (a place
    of -1). static: its graph is translated for exactly the number of tokens that enters.
    spares_tokens: its decision does not read the tokens, so that a last block whose head reads the
    prefix alone moves sizes only. before_attention: it decides on the attention map and merges that
    too, before the map meets the values, which are those of the tokens that stay; its counts are
    fixed (`tokens_after`).
    """

    asks: ClassVar[tuple[Signal, ...]] = ()
    drops: ClassVar[bool] = False
    static: ClassVar[bool] = False
    spares_tokens: ClassVar[bool] = False
    before_attention: ClassVar[bool] = False

    # What it is.

    @property
    @abstractmethod
    def adaptive(self) -> bool:
        """Whether the number of tokens that stay is decided at run time."""

    @property
    def idle(self) -> bool:
        """Whether it can never reduce anything."""
        return False

    @property
    def form(self) -> str:
        """Rules of equal form differ in their constants alone, and so share one translation."""
        return repr(self)

    def tokens_after(self, tokens: int, prefix: int) -> int | None:
        """How many of `tokens` stay; None: decided at run time."""
        return None

    def frozen(self, count: int) -> Self:
        """The same rule, with `count` tokens removed whatever the image."""
        raise ConfigError("this method has no frozen form")

    def above(self, theta: float) -> Self | None:
        """The same rule deciding by a cosine threshold; None where that means nothing."""
        return None

    def extremes(self) -> Mapping[str, Extreme]:
        """By label, the ends of what it may decide at run time; both are proven too."""
        return {}

    # The eager reference.

    @abstractmethod
    def decide(self, signals: Signals) -> Decision:
        """Which tokens go."""

    @abstractmethod
    def reduce(self, tokens: Tensor, sizes: Tensor, decision: Any, prefix: int) -> Reduced:
        """Carry a decision out; the prefix keeps its place in front."""

    def reduce_attention(self, weights: Tensor, decision: Any) -> Tensor:
        """The map [B, H, N, N] of a rule that is `before_attention`, merged: [B, H, n, n], rows
        of sum 1."""
        raise NotImplementedError

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[Decision, float]:
        """The decision that moves tokens to moved_to [B, N], and by how much its scores fall short
        of the best; NotFollowed where there is none. A method that gives no choice leaves this:
        then maps must be equal."""
        import torch

        decision = self.decide(signals)
        reduced = self.reduce(signals.tokens, signals.sizes, decision, signals.prefix)
        if not torch.equal(reduced.moved_to, moved_to):
            raise NotFollowed("another choice than the reference's own")
        return decision, 0.0

    # The export.

    def constants(self, tokens: int | None, prefix: int) -> dict[str, Tensor]:
        """Numbers that the graph holds for this block, by name; tokens: how many enter, where that
        is known at export."""
        return {}

    def order(self, tokens: int, prefix: int) -> Tensor | None:
        """Old positions [tokens] in new order, where a change of order is all that it can do."""
        return None

    def reorder(self, x: Tensor, prefix: int) -> Tensor:
        """x [B, n, C] in that order."""
        raise NotImplementedError

    @abstractmethod
    def apply(self, signals: GraphSignals) -> GraphReduced:
        """Decide and reduce in one, by operations that have an ONNX."""

    def apply_each(self, signals: GraphSignals) -> GraphReduced:
        """The same where each image decides for itself: padding has size 0, and goes last."""
        raise UnsupportedModelError("this method has no form for --merge per-image")

    def takes_steps(self, tokens: int) -> bool:
        """Whether `apply_stepped` is a form of it for a model of so many tokens."""
        return False

    def apply_stepped(self, signals: GraphSignals, step: int, each: bool) -> GraphReduced:
        """The same for backends to which every new length is dear: tokens are padded (size 0, last)
        to a multiple of `step`. each: each image decides for itself."""
        raise NotImplementedError

    def translations(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """The ONNX of the torch operators that `apply` calls, beyond plain torch."""
        return {}
