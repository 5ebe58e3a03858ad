"""Canonical ImageNet class indices for images that lie in synset folders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from atm_export.errors import DataError


@cache
def synset_index() -> dict[str, int]:
    """Class index of each of the 1000 synsets, from the table that timm carries."""
    from timm.data import ImageNetInfo

    return {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def imagenet_labels(files: Sequence[Path]) -> list[int]:
    """Class index of each file by the name of its folder; a subset of classes scores right."""
    table = synset_index()
    for file in files:
        if file.parent.name not in table:
            raise DataError(f"{file}: folder '{file.parent.name}' is no ImageNet-1k synset")
    return [table[file.parent.name] for file in files]
