"""What values and weights are called, from the twin to the passes: one contract.

A block's weights are `blocks.3.mlp.fc1.weight`, its values `blocks.3/...`; numbers of its rule
(a merge's `limit`) are weights too.
"""

from __future__ import annotations

MODEL, EMBED, HEAD = "model", "embed", "head"
# Tags of nodes while a graph is worked on; no saved graph has them. RULE: one of a rule's own;
# SIGNAL: it makes a value that a rule is handed.
RULE, SIGNAL = "atm_export.rule", "atm_export.signal"
LIMIT = "limit"  # a threshold: kept under its own name, so that it can be changed in the graph
_BLOCKS = "blocks"
_KEYS = (".k.weight", ".thirds.weight")  # of layers that make keys, alone or with q and v


def block(i: int) -> str:
    """The block of index i, from 0."""
    return f"{_BLOCKS}.{i}"


def of_block(i: int, name: str) -> str:
    """A weight or number of a block."""
    return f"{block(i)}.{name}"


def head_after(i: int) -> str:
    """What reads the tokens after a block."""
    return f"{HEAD}.{i}"


def is_limit(name: str) -> bool:
    """Whether this is a threshold of some block."""
    return name.endswith(f".{LIMIT}")


def may_be_quantized(name: str, *, keys: bool = False) -> bool:
    """Whether this is the weight of a block's linear layer, the keys' only with `keys`: those
    decide which tokens merge. The head is small, and keeps its precision."""
    of_keys = any(each in name for each in _KEYS)
    return f"{_BLOCKS}." in name and (keys or not of_keys) and f"{HEAD}." not in name
