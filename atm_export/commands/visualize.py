"""`atm-export visualize`: which patches share a token, drawn over images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter

from atm_export import loose_files, place
from atm_export.errors import ConfigError
from atm_export.imagefiles import is_folder
from atm_export.inputs import Pixels
from atm_export.measure.insight import fates, features_of
from atm_export.preprocess import list_images, read_image
from atm_export.report.features import features_beside
from atm_export.report.pictures import drawable, png, regions, side_by_side
from atm_export.runs.reading import open_run
from atm_export.subject import Subject, exported_subject


def visualize(
    run: Path,
    /,
    *images: Path,
    out: Annotated[Path, Parameter(help="Folder for the pictures.")] = Path("tokens"),
    plain: Annotated[
        bool, Parameter(help="Draw the tokens alone, without the image beside them.", negative=())
    ] = False,
    weights: Annotated[
        str | None, Parameter(help="The export's weights, where they are no longer in their place.")
    ] = None,
) -> int:
    """Write token pictures: patches that share a token in the end become one flat region.

    Each image runs alone. Patches that stay tokens of their own keep their pixels. A folder stands
    for the images in it. Writes IMAGE-tokens.png and prints the tokens that remain; of a run of
    --task dense IMAGE-features.png too: the features of patches, unmerged and merged, as colours
    (the first three principal components of the unmerged ones).

        atm-export visualize build/deit_s-a2-3.23 dog.jpg cat.jpg --out pictures
    """
    opened = open_run(run)
    subject = exported_subject(opened.manifest, f"{run}/manifest.json", weights)
    files = [file for path in images for file in (list_images(path) if is_folder(path) else [path])]
    if not files:
        raise ConfigError("name the images to draw: atm-export visualize RUN IMAGE...")
    backbone = subject.model.backbone
    if not drawable(backbone.grid):
        raise ConfigError(
            f"{subject.model.name} has a grid of {list(backbone.grid)} patches, which is no picture"
        )
    names = _names(files)
    kinds = ("tokens", "features") if backbone.unmerges else ("tokens",)
    place.refuse_loss(out, [f"{name}-{kind}.png" for name in names for kind in kinds])
    for file, name in zip(files, names, strict=True):
        pixels = read_image(file, subject.model.preprocessing)
        picture, told = _drawn(subject, pixels, plain)
        written = {f"{name}-tokens.png": picture}
        if backbone.unmerges:
            written[f"{name}-features.png"] = _features(subject, pixels)
        loose_files.put_files(out, written)
        print(f"{' and '.join(str(out / each) for each in written)}: {told}")
    return 0


def _features(subject: Subject, pixels: Pixels) -> bytes:
    """Image, unmerged and merged features of its patches, as PNG."""
    image = subject.tensor(pixels[None])
    return png(features_beside(pixels, *features_of(subject.model.backbone, subject.plan, image)))


def _drawn(subject: Subject, pixels: Pixels, plain: bool) -> tuple[bytes, str]:
    """A picture, as PNG, and what is left of its tokens."""
    backbone = subject.model.backbone
    with torch.inference_mode():
        fate = fates(backbone, subject.plan, subject.tensor(pixels[None]))
    draw = regions if plain else side_by_side
    picture = png(draw(pixels, fate.maps[0].numpy(), backbone.grid))
    tokens, gmacs = int(fate.tokens[0]), float(fate.gmacs[0])
    return picture, f"{tokens} tokens of {backbone.tokens}, {gmacs:.3f} GFLOPs"


def _names(files: list[Path]) -> list[str]:
    """Stems; if one occurs twice (in any case of letters), all with number and folder before."""
    stems = [file.stem for file in files]
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    return [f"{i + 1}-{file.parent.name}-{file.stem}" for i, file in enumerate(files)]
