"""Small data sets whose images carry their own number as their red value."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image

from atm_export.inputs import Preprocessing
from atm_export.measure.data.decode import decode
from atm_export.measure.data.samples import Samples

HOW = Preprocessing((16, 16), 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SYNSETS = ("n15075141", "n01440764", "n02099601")  # classes 999, 0, 207


def save(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (shade, 0, 0)).save(path)
    return path


def png(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (20, 20), (shade, 0, 0)).save(data, "PNG")
    return data.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def by_shade(samples: Samples) -> dict[int, tuple[int, ...]]:
    """What is right, by the red value that the image itself carries."""
    found = decode(samples.reader, HOW, range(len(samples)))
    assert not found.unreadable
    shades = found.pixels[:, 8, 8, 0].tolist()
    return {shade: samples.right[i] for shade, i in zip(shades, found.kept, strict=True)}


def unreadable(samples: Samples) -> dict[str, str]:
    """Reasons by name of the images that cannot be decoded."""
    found = decode(samples.reader, HOW, range(len(samples)))
    assert len(found.kept) + len(found.unreadable) == len(samples)
    return {samples.name(i): reason for i, reason in found.unreadable}
