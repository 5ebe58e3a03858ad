"""From a preprocessor_config.json of transformers to the usual resize, crop and normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.model.huggingface.described import Vision
from atm_export.model.huggingface.repository import Repository
from atm_export.model.resizing import crop_share
from atm_export.shapes import (
    Check,
    Misfit,
    either,
    fields,
    flag,
    items,
    maybe,
    number,
    one_of,
    text,
    whole,
)

FILE, NESTED = "preprocessor_config.json", "processor_config.json"
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_STANDARD = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_ALL = {
    **{"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False},
    "rescale_factor": 1 / 255,
}
_SHORT = {
    **{**_ALL, **_CLIP, "resample": 3, "do_center_crop": True},
    **{"size": {"shortest_edge": 224}, "crop_size": 224},
}
_SQUARE = {"height": 224, "width": 224}
USUAL: Mapping[str, Mapping[str, Any]] = {  # of each image processor, where a file says nothing
    "ViT": {**_ALL, **_STANDARD, "resample": 2, "size": _SQUARE},
    "DeiT": {
        **{**_ALL, **_STANDARD, "resample": 3, "do_center_crop": True},
        **{"size": {"height": 256, "width": 256}, "crop_size": 224},
    },
    "CLIP": _SHORT,
    "Bit": _SHORT,
    "Siglip": {**_ALL, **_STANDARD, "resample": 3, "size": _SQUARE},
    "Siglip2": {**_ALL, **_STANDARD, "resample": 2, "size": _SQUARE},
}
_ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_HARMLESS = ("do_convert_rgb",)  # which is done to every picture
_edge = whole(1, 8192)
_box = fields({"height": _edge, "width": _edge})
_SHORT_SIDE = fields({"shortest_edge": _edge})
_FIELDS: Mapping[str, Check] = {
    **dict.fromkeys(_STEPS, flag),
    "size": either(_edge, either(_SHORT_SIDE, _box)),
    "crop_size": maybe(either(_edge, _box)),
    "resample": one_of(*FILTERS),
    "rescale_factor": number(1e-6, 1e3),
    "image_mean": items(number(-1e6, 1e6), 1, 1024),
    "image_std": items(number(1e-6, 1e6), 1, 1024),
}
_NAMES = fields({}, {"image_processor_type": maybe(text), "feature_extractor_type": maybe(text)})


@dataclass(frozen=True)
class Processed:
    """What becomes of a picture: settings of `Preprocessing` but its size; edge: pixels along what
    is cropped, None where no file says it. notes: what a report should say."""

    values: Mapping[str, Any]
    edge: int | None
    notes: tuple[str, ...] = ()


def processed(repository: Repository, vision: Vision) -> Processed:
    """As its files say, else as the model type's image processor usually does it. ConfigError,
    UnsupportedModelError for what cannot be expressed."""
    told, file = repository.document(FILE), FILE
    if told is None and (outer := repository.document(NESTED)) is not None:
        inner = outer.get("image_processor")
        told, file = (inner if isinstance(inner, dict) else None), NESTED
    where = f"{repository.name}: {file}"
    try:
        found = _processed(told or {}, vision, where)
    except Misfit as misfit:
        raise ConfigError(f"{where}: {misfit}") from misfit
    if told is not None:
        return found
    usual = f"no {FILE}: the usual preprocessing of {vision.type}"
    return Processed(found.values, None, (*found.notes, usual))


def _processed(told: Mapping[str, Any], vision: Vision, where: str) -> Processed:
    kind = _kind(told, vision, where)
    said = {key: _said(value) for key, value in told.items() if value is not None}
    values = {"crop_size": None, **USUAL[kind], **said}
    if kind == "Siglip2":  # its `size` means nothing: each image has its own
        values["size"] = {"height": vision.image, "width": vision.image}
    fields(_FIELDS)(values, "")
    _refuse_steps(told, values, where)
    share, mode, edge = _geometry(values, USUAL[kind], where)
    notes = ("images become square, where NaFlex keeps their shape",) if kind == "Siglip2" else ()
    settings = {
        "crop_pct": share,
        "crop_mode": mode,
        "interpolation": FILTERS[values["resample"]],
        **_normalisation(values, vision, where),
    }
    return Processed(settings, edge, notes)


def _said(value: Any) -> Any:
    """A value without the fields that say nothing."""
    if not isinstance(value, dict):
        return value
    return {key: each for key, each in value.items() if each is not None}


def _kind(told: Mapping[str, Any], vision: Vision, where: str) -> str:
    """The image processor's name without its ending; that of the model type where none is given."""
    _NAMES(told, "")
    name = told.get("image_processor_type") or told.get("feature_extractor_type")
    if name is None:
        return vision.kind.processor
    bare = next((name.removesuffix(each) for each in _ENDINGS if name.endswith(each)), name)
    if bare not in USUAL:
        raise UnsupportedModelError(
            f"{where}: image processor '{name[:60]}' is not known; these are: {', '.join(USUAL)}"
        )
    return bare


def _refuse_steps(told: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    steps = [key for key in told if key.startswith("do_") and key not in (*_STEPS, *_HARMLESS)]
    for step in steps:
        if told[step]:
            raise UnsupportedModelError(f"{where}: {step[:40]} cannot be exported; set it to false")
    if told.get("crop_pct") is not None:
        raise UnsupportedModelError(
            f"{where}: crop_pct cannot be exported; give size and crop_size"
        )
    if not values["do_resize"]:
        raise UnsupportedModelError(
            f"{where}: do_resize is false, and pictures of any size must come to one size"
        )


def _geometry(
    values: Mapping[str, Any], usual: Mapping[str, Any], where: str
) -> tuple[float, str, int]:
    """Share and mode of the crop, and its edge in pixels."""
    size = values["size"]
    short = "shortest_edge" in (usual["size"] if isinstance(size, int) else size)
    if isinstance(size, int):
        resized = (size, size)
    elif short:
        if len(size) > 1:
            raise UnsupportedModelError(f"{where}: size has more than a shortest_edge")
        resized = (size["shortest_edge"],) * 2
    else:
        resized = (size["height"], size["width"])
    crop = resized
    if values["do_center_crop"]:
        given = values["crop_size"] or resized[0]
        crop = (given, given) if isinstance(given, int) else (given["height"], given["width"])
    elif short:
        raise UnsupportedModelError(
            f"{where}: the short side is resized and nothing cropped, so that images have no one "
            "size; set do_center_crop to true"
        )
    if resized[0] != resized[1] or crop[0] != crop[1] or crop[0] > resized[0]:
        raise UnsupportedModelError(
            f"{where}: a crop of {list(crop)} from {list(resized)} is no square inside a square"
        )
    return crop_share(crop, resized), "center" if short else "squash", crop[0]


def _normalisation(
    values: Mapping[str, Any], vision: Vision, where: str
) -> dict[str, tuple[float, ...]]:
    """mean and std of pixels of 0 to 1, the rescaling in them."""
    factor = 255 * (values["rescale_factor"] if values["do_rescale"] else 1.0)
    factor = 1.0 if math.isclose(factor, 1, rel_tol=1e-6) else factor
    mean, std = values["image_mean"], values["image_std"]
    if not values["do_normalize"]:
        mean, std = [0.0] * vision.channels, [1.0] * vision.channels
    if not len(mean) == len(std) == vision.channels:
        raise ConfigError(
            f"{where}: {len(mean)} means and {len(std)} deviations; its images have "
            f"{vision.channels} channels"
        )
    return {"mean": tuple(m / factor for m in mean), "std": tuple(s / factor for s in std)}
