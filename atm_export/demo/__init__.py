"""The demo that ships: a small ViT trained on handwritten digits, and images it never saw."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atm_export.errors import AtmExportError
from atm_export.strict_json import read

FOLDER = Path(str(resources.files(__package__)))


def card() -> dict[str, Any]:
    """Architecture, training and measured accuracy."""
    return read(FOLDER / "card.json", AtmExportError, dict, fix="install atm-export again")


def heldout() -> tuple[list[Image.Image], NDArray[np.int64]]:
    """The 360 held-out digits as 8 x 8 RGB images, and their classes."""
    with np.load(FOLDER / "heldout.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    return [Image.fromarray(image).convert("RGB") for image in images], labels
