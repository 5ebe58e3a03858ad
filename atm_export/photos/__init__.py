"""The photographs that ship, and the 32 views of them that a run proves and measures itself on.

Who made them and under which licence: card.json, and README.md beside them (tools/make_photos.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from atm_export.errors import DataError
from atm_export.pictures import read_rgb
from atm_export.strict_json import read

FOLDER = Path(str(resources.files(__package__)))
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class View:
    """Part of a photograph: box (left, top, right, bottom) as shares of it, mirrored or not."""

    photo: str
    box: tuple[float, float, float, float] = WHOLE
    mirrored: bool = False

    def image(self) -> Image.Image:
        """The view in the photograph's own resolution, RGB."""
        photo = read_rgb(FOLDER / f"{self.photo}.jpg")
        left, top, right, bottom = self.box
        start = round(left * photo.width), round(top * photo.height)
        view = photo.crop((*start, round(right * photo.width), round(bottom * photo.height)))
        return ImageOps.mirror(view) if self.mirrored else view


# Different photographs first, so that the first few views are varied too.
VIEWS = (
    View("cat"),
    View("coffee"),
    View("astronaut"),
    View("temple"),
    View("raccoon"),
    View("flower"),
    View("rocket"),
    View("officer"),
    View("camera", mirrored=True),
    View("coins"),
    View("stairs"),
    View("cat", (0.2, 0.0, 0.85, 0.75), mirrored=True),
    View("temple", (0.0, 0.25, 0.55, 1.0)),
    View("astronaut", (0.25, 0.0, 0.75, 0.5), mirrored=True),
    View("flower", (0.25, 0.05, 1.0, 0.95), mirrored=True),
    View("raccoon", (0.35, 0.1, 1.0, 0.75)),
    View("galaxies"),
    View("coffee", (0.2, 0.1, 0.75, 0.85), mirrored=True),
    View("brick"),
    View("officer", (0.15, 0.05, 0.85, 0.6), mirrored=True),
    View("rocket", (0.25, 0.35, 0.8, 1.0)),
    View("grass", (0.0, 0.0, 0.7, 0.7)),
    View("clock"),
    View("temple", (0.4, 0.1, 1.0, 0.8), mirrored=True),
    View("raccoon", (0.0, 0.0, 0.65, 0.8), mirrored=True),
    View("retina"),
    View("astronaut", (0.0, 0.3, 0.6, 1.0)),
    View("gravel", mirrored=True),
    View("camera", (0.2, 0.1, 0.75, 0.65)),
    View("stairs", (0.1, 0.0, 0.8, 0.7), mirrored=True),
    View("flower", (0.0, 0.2, 0.6, 1.0)),
    View("coins", (0.0, 0.4, 0.55, 1.0), mirrored=True),
)


@cache
def card() -> dict[str, dict[str, Any]]:
    """By name: what each photograph shows, its author, licence and source."""
    rows = read(FOLDER / "card.json", DataError, dict)["photos"]
    return {row["name"]: row for row in rows}


def credit(photo: str) -> str:
    """A caption that names the author and the licence."""
    row = card()[photo]
    return f"{photo} ({row['author']}, {row['licence']})"


def unconditional(photo: str) -> bool:
    """Whether the photograph may travel without its author's name."""
    return not card()[photo]["licence"].startswith("CC BY")
