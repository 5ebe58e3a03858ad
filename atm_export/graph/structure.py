"""What a module is but for the numbers of its weights: what decides its translation."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload


def structure(module: nn.Module, *beside: Any) -> str | None:
    """A hash of the module and of what lies `beside` it (picklable values), equal in one process
    where they differ in nothing but the numbers of the tensors in `state_dict`. None where it holds
    what cannot be written down, such as a function without a name of its own."""
    file = io.BytesIO()
    try:
        _Writer(file, module).dump((module, beside))
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
        return None
    return hashlib.sha256(file.getvalue()).hexdigest()


class _Writer(pickle.Pickler):
    """Weights by number, type and shape; other tensors by their values too."""

    def __init__(self, file: io.BytesIO, module: nn.Module) -> None:
        super().__init__(file, protocol=5)
        self.fast = True  # no memo: equal values are written alike, whether or not they are one
        self.weights: dict[int, int] = {}
        for tensor in module.state_dict(keep_vars=True).values():
            self.weights.setdefault(id(tensor), len(self.weights))

    def persistent_id(self, thing: Any) -> Any:
        if isinstance(thing, OpOverload):
            return ("operator", str(thing))
        if not isinstance(thing, Tensor):
            return None
        facts = (str(thing.dtype), tuple(thing.shape), thing.requires_grad)
        number = self.weights.get(id(thing))
        if number is not None:
            return ("weight", number, *facts)
        values = thing.detach().contiguous().cpu().numpy().tobytes()
        return ("constant", hashlib.sha256(values).hexdigest(), *facts)
