"""Checkpoints of transformers: `hf:OWNER/NAME` of the Hugging Face hub, or `hf:./FOLDER`.

ViT, DeiT, DINOv2 (with registers), CLIP and SigLIP have the shape of timm's VisionTransformer,
under other names; what is answered is what transformers' own class answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import LayerNorm, Mlp, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError
from atm_export.inputs import Preprocessing
from atm_export.model.backbone import Limited, LoadedModel, families
from atm_export.model.dense import notes_of_patches, patches_of
from atm_export.model.embedding import chosen_embedding
from atm_export.model.huggingface.described import CONFIG, Vision, described
from atm_export.model.huggingface.kinds import Reading
from atm_export.model.huggingface.names import is_read, timm_tensors
from atm_export.model.huggingface.preprocessing import Processed, processed
from atm_export.model.huggingface.repository import Repository, opened, read_tensors, weight_files
from atm_export.model.pooling import WORDS, mean_of
from atm_export.model.published import load_weights, overridden
from atm_export.model.resizing import take_images_of
from atm_export.model.vit import TimmBackbone
from atm_export.model.weights import load_strictly, state_digest
from atm_export.tasks.embed import Embed

POOLS = {"class": "token", "both": "token", "class and mean": "token", "mean": "avg", "pool": "map"}
EMBEDDED = {
    "class": "the class token after the last norm",
    "mean": "the mean of the patches",
    "pool": "the attention pool of the patches",
}
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}  # else by timm's name


class ClassAndMeanBackbone(TimmBackbone):
    """DINOv2's classifier, which reads the class token beside the mean of the patches."""

    def __init__(self, model: VisionTransformer, name: str, proportional: bool) -> None:
        super().__init__(model, name, proportional)
        self.head_rows = None

    def head(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        tokens = self.model.norm(tokens)
        own = None if sizes is None else sizes[:, self.prefix :]
        mean = mean_of(tokens[:, self.prefix :], own)
        return self.model.head(torch.cat([tokens[:, 0], mean], dim=1))

    def plain(self, image: Tensor) -> Tensor:
        features = self.model.forward_features(image)
        pair = torch.cat([features[:, 0], features[:, self.prefix :].mean(dim=1)], dim=1)
        return self.model.head(pair)


def build_huggingface(spec: ModelSpec) -> LoadedModel:
    """The family of transformers' checkpoints: timm's model of the same shape, their weights."""
    if spec.config.options:
        raise ConfigError(f"{spec.name}: a checkpoint of transformers has no options")
    repository = opened(spec.config.architecture)
    told = repository.document(CONFIG)
    if told is None:
        raise ConfigError(f"{repository.name} has no {CONFIG}")
    vision = described(told, repository.name)
    patches, embeds = patches_of(spec, vision.depth), _embeds(spec, vision)
    if patches or embeds:
        vision = _embedder(vision)
    how = processed(repository, vision)
    model = _timm_model(vision)
    facts = _load(model, spec, repository, vision)
    if (size := _size(spec, vision, how)) != vision.image:
        take_images_of(model, size, spec.name, vision.kind.how)
    proportional = spec.config.proportional
    if vision.reading.reads == "class and mean":
        backbone: TimmBackbone = ClassAndMeanBackbone(model, spec.name, proportional)
    else:
        embedding = chosen_embedding(model, spec, vision.reading.projected) if embeds else None
        backbone = TimmBackbone(model, spec.name, proportional, embedding, patches)
    values = overridden(how.values, spec.config)
    return LoadedModel(
        name=spec.name,
        backbone=backbone,
        preprocessing=Preprocessing(size=backbone.image_size, **values),
        weights=facts,
        labels=None if embeds or patches else vision.labels,
        notes=(*_notes(spec, vision, how, size), *_answered(backbone, vision)),
    )


def _embeds(spec: ModelSpec, vision: Vision) -> bool:
    """Whether it embeds: by itself where there are no classes."""
    reading = vision.reading
    classifies = reading.head is not None and not reading.projected
    return spec.task == Embed.name or (spec.task == "auto" and not classifies)


def _embedder(vision: Vision) -> Vision:
    """The same without what only its classifiers read beside the class token."""
    reading = vision.reading
    if reading.reads not in ("both", "class and mean"):
        return vision
    heads = ("classifier", "cls_classifier", "distillation_classifier")
    return replace(vision, reading=Reading("class", unread=heads), answers=0, labels=None)


def _timm_model(vision: Vision) -> VisionTransformer:
    reads = vision.reading.reads
    clip = vision.kind.layout == "clip" and vision.has_class_token
    distilled = vision.type == "deit"
    kind = VisionTransformerDistilled if reads == "both" else VisionTransformer
    hidden = vision.hidden * (2 if vision.gated else 1)
    model = kind(
        img_size=vision.image,
        patch_size=vision.patch,
        in_chans=vision.channels,
        num_classes=vision.answers,
        global_pool=POOLS[reads],
        embed_dim=vision.width,
        depth=vision.depth,
        num_heads=vision.heads,
        mlp_ratio=(hidden + 0.5) / vision.width,  # timm rounds the product down
        qkv_bias=vision.qkv_bias,
        init_values=1.0 if vision.kind.layout == "dinov2" else None,
        class_token=vision.has_class_token,
        no_embed_class=vision.registers > 0,
        reg_tokens=1 if distilled and reads != "both" else vision.registers,
        pre_norm=clip,
        final_norm=not (clip and reads == "mean"),
        fc_norm=False,
        norm_layer=partial(LayerNorm, eps=vision.eps),
        act_layer=nn.SiLU if vision.gated else ACTIVATIONS.get(vision.act, vision.act),
        mlp_layer=SwiGLUPacked if vision.gated else Mlp,
        weight_init="skip",
    ).eval()
    if vision.reading.projected:
        model.head = nn.Linear(vision.width, vision.answers, bias=False)
    elif reads == "class and mean":
        model.head = nn.Linear(2 * vision.width, vision.answers)
    return model


def _load(
    model: VisionTransformer, spec: ModelSpec, repository: Repository, vision: Vision
) -> dict[str, Any]:
    def renamed(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        return timm_tensors(tensors, model.state_dict(), vision, source)

    if spec.weights != "pretrained" or spec.config.published is not None:
        file = Path(spec.weights).name
        return load_weights(model, spec, renamed=partial(renamed, source=file))
    tensors = read_tensors(weight_files(repository), is_read)
    load_strictly(model, renamed(tensors, spec.name), spec.name)
    return {"source": spec.name, "sha256": state_digest(model)}


def _size(spec: ModelSpec, vision: Vision, how: Processed) -> int:
    """Pixels along an edge: as asked for, as its pictures are cropped where it takes any size, or
    as it was trained."""
    if spec.image_size is not None:
        return spec.image_size
    edge = how.edge
    fits = edge is not None and edge % vision.patch == 0 and edge >= 2 * vision.patch
    return edge if edge is not None and fits and vision.kind.anyhow else vision.image


def _answered(backbone: TimmBackbone, vision: Vision) -> tuple[str, ...]:
    """What a report should say of the answer."""
    if backbone.unmerges:
        return notes_of_patches(backbone.layers)
    embeds = backbone.embeds
    if embeds is None:
        has_classes = vision.reading.head is not None
        return () if has_classes else ("no classifier: logits are the pooled features",)
    what = WORDS[embeds.pool] if embeds.pool else EMBEDDED[vision.reading.reads]
    what = "the head's projection" if embeds.projected else what
    return (f"embedding: {what}{', of length 1' if embeds.normalize else ''}",)


def _notes(spec: ModelSpec, vision: Vision, how: Processed, size: int) -> tuple[str, ...]:
    """What a report should say of the pictures and the terms."""
    notes = list(how.notes)
    if spec.image_size is None and size != vision.image:
        notes.append(f"images of {size}, as its preprocessing has them; trained on {vision.image}")
    if spec.image_size is None and how.edge not in (None, size):
        notes.append(f"its preprocessing crops to {how.edge}; {size} takes the same share of it")
    if spec.weights == "pretrained":
        notes.append("the licence is that of the model card, which is not read")
    return tuple(notes)


families.add(
    "huggingface", Limited(build_huggingface, "a checkpoint of Hugging Face transformers", ())
)
