"""What a config.json of transformers says of a vision transformer, checked before it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.model.huggingface.kinds import KINDS, Kind, Reading
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
    table,
    text,
    whole,
)

CONFIG = "config.json"
MOST_PIXELS = 4096  # along an edge
MOST_PARAMETERS = 6 * 10**9  # 24 GB; the largest such models have 2e9
ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


@dataclass(frozen=True)
class Vision:
    """A vision transformer: sizes in pixels, `hidden` units of an MLP (of each half where it is
    gated), `answers` numbers of its head (0: none). labels: names of its classes, if it has any."""

    type: str
    kind: Kind
    reading: Reading
    width: int
    depth: int
    heads: int
    hidden: int
    image: int
    patch: int
    channels: int
    act: str
    eps: float
    qkv_bias: bool
    gated: bool
    registers: int
    answers: int
    labels: tuple[str, ...] | None

    @property
    def grid(self) -> int:
        """Patches along an edge, of those that are whole."""
        return self.image // self.patch

    @property
    def flexible(self) -> bool:
        """SigLIP2's NaFlex: patches are flattened before they are embedded."""
        return self.kind.processor == "Siglip2"

    @property
    def has_class_token(self) -> bool:
        return not self.type.startswith("siglip")


_square = either(whole(1, MOST_PIXELS), items(whole(1, MOST_PIXELS), 2, 2))
_FIELDS: Mapping[str, Check] = {
    "hidden_size": whole(1, 8192),
    "num_hidden_layers": whole(1, 128),
    "num_attention_heads": whole(1, 256),
    "intermediate_size": whole(1, 65536),
    "mlp_ratio": number(0.01, 64),
    "image_size": _square,
    "patch_size": _square,
    "num_patches": whole(1, 4096),
    "num_channels": whole(1, 1024),
    "num_register_tokens": whole(1, 64),
    "projection_dim": whole(1, 65536),
    "hidden_act": one_of(*ACTIVATIONS),
    "layer_norm_eps": number(0, 1),
    "qkv_bias": flag,
    "use_swiglu_ffn": flag,
    "vision_use_head": flag,
}


def _labels(value: Any, at: str) -> None:
    table(text)(value, at)
    if not 1 <= len(value) <= 10**6:
        raise Misfit(f"{at} must name 1 to {10**6} classes, not {len(value)}")


_TOP = fields(
    {"model_type": text},
    {
        "architectures": maybe(items(text, 0, 16)),
        "num_labels": whole(1, 10**6),
        "id2label": maybe(_labels),
        "projection_dim": whole(1, 65536),
        "vision_config": maybe(fields({})),
        "vision_config_dict": maybe(fields({})),
    },
)


def described(told: Mapping[str, Any], name: str) -> Vision:
    """The model of a config.json; ConfigError for values that cannot be meant,
    UnsupportedModelError for what is no vision transformer of KINDS."""
    where = f"{name}: {CONFIG}"
    if "model_type" not in told and "architecture" in told:
        raise ConfigError(f"{where} is that of a timm model; give hf-hub: in the place of hf:")
    try:
        _TOP(told, "")
        kind, reading = _kind(told, where)
        values = _values(told, kind)
        fields({key: _FIELDS[key] for key in kind.usual})(values, "")
        patch = _edge(values["patch_size"], "patch_size")
        image = _image(values, patch)
    except Misfit as misfit:
        raise ConfigError(f"{where}: {misfit}") from misfit
    _refuse(told, values, where, reading)
    answers, labels = _answers(told, values, reading, where)
    vision = Vision(
        type=told["model_type"],
        kind=kind,
        reading=reading,
        width=values["hidden_size"],
        depth=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        hidden=_hidden(values),
        image=image,
        patch=patch,
        channels=values["num_channels"],
        act=ACTIVATIONS[values["hidden_act"]],
        eps=float(values["layer_norm_eps"]),
        qkv_bias=values["qkv_bias"],
        gated=values.get("use_swiglu_ffn", False),
        registers=values.get("num_register_tokens", 0),
        answers=answers,
        labels=labels,
    )
    _refuse_sizes(vision, where)
    return vision


def _kind(told: Mapping[str, Any], where: str) -> tuple[Kind, Reading]:
    """By the model type and the first of its classes that is known; the plain one where none is
    named."""
    type_ = told["model_type"]
    if type_ not in KINDS:
        raise UnsupportedModelError(
            f"{where}: model type '{type_[:40]}' is not supported; these are: {', '.join(KINDS)}"
        )
    kind, names = KINDS[type_], told.get("architectures") or []
    known = [name for name in names if name in kind.classes] if names else list(kind.classes)
    if not known:
        raise UnsupportedModelError(
            f"{where}: class '{names[0][:60]}' is not supported; of {type_}: "
            f"{', '.join(kind.classes)}"
        )
    return kind, kind.classes[known[0]]


def _values(told: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """The vision tower's values with the usual ones where it says nothing."""
    own = told
    if kind.nested:
        older = told.get("vision_config_dict")  # which takes precedence, as in transformers
        own = (told.get("vision_config") or {}) if older is None else older
    return {key: own.get(key, value) for key, value in kind.usual.items()}


def _edge(value: Any, key: str) -> int:
    height, width = value if isinstance(value, list) else (value, value)
    if height != width:
        raise Misfit(f"{key} must be square, not {value}")
    return int(height)


def _image(values: Mapping[str, Any], patch: int) -> int:
    """Pixels along an edge; of NaFlex models, whose images have any shape, those of a square."""
    if "image_size" in values:
        return _edge(values["image_size"], "image_size")
    edge = round(values["num_patches"] ** 0.5)
    if edge**2 != values["num_patches"]:
        raise Misfit(f"num_patches must be a square number, not {values['num_patches']}")
    if edge * patch > MOST_PIXELS:
        raise Misfit(f"num_patches of {patch} pixels must fit into {MOST_PIXELS} pixels a side")
    return edge * patch


def _hidden(values: Mapping[str, Any]) -> int:
    """Units of an MLP, as transformers rounds them."""
    if "intermediate_size" in values:
        return int(values["intermediate_size"])
    hidden = int(values["hidden_size"] * values["mlp_ratio"])
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if values["use_swiglu_ffn"] else hidden


def _answers(
    told: Mapping[str, Any], values: Mapping[str, Any], reading: Reading, where: str
) -> tuple[int, tuple[str, ...] | None]:
    """How many numbers the head gives, and the names of all classes, where they have names."""
    if reading.head is None:
        return 0, None
    if reading.projected:
        said = told.get("projection_dim", 512) if reading.outer else values["projection_dim"]
        return int(said), None
    names, count = told.get("id2label"), told.get("num_labels")
    if names is None:
        return 2 if count is None else count, None  # transformers' default
    if count is not None and count != len(names):
        raise ConfigError(f"{where}: num_labels is {count}, id2label has {len(names)} names")
    complete = [names.get(str(i), "") for i in range(len(names))]
    named = all(complete) and complete != [f"LABEL_{i}" for i in range(len(names))]
    return len(names), tuple(complete) if named else None


def _refuse(
    told: Mapping[str, Any], values: Mapping[str, Any], where: str, reading: Reading
) -> None:
    """What cannot be expressed, each in one line."""
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise ConfigError(f"{where}: hidden_size {width} is no multiple of {heads} heads")
    if told.get("head_dim", width // heads) != width // heads:
        raise UnsupportedModelError(f"{where}: its heads are not hidden_size / heads wide")
    if told.get("quantization_config") is not None:
        raise UnsupportedModelError(
            f"{where}: its weights are quantized; give the checkpoint they were made from"
        )
    if reading.reads == "pool" and not values["vision_use_head"]:
        raise UnsupportedModelError(f"{where}: it has no pooling head, and so no embedding")


def _refuse_sizes(vision: Vision, where: str) -> None:
    """More parameters than any such model has: a slip or a trap, found before memory is taken."""
    block = vision.width * (4 * vision.width + (3 if vision.gated else 2) * vision.hidden)
    stem = vision.grid**2 + vision.channels * vision.patch**2 + 2 * vision.answers
    count = vision.depth * block + vision.width * stem
    if count > MOST_PARAMETERS:
        raise ConfigError(
            f"{where}: {count:.1e} parameters, more than {MOST_PARAMETERS:.0e}; is it damaged?"
        )
    if vision.grid < 2:
        raise UnsupportedModelError(
            f"{where}: an image of {vision.image} has a single patch of {vision.patch}"
        )
