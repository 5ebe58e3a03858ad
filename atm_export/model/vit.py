"""Any plain timm VisionTransformer, by its timm name: DeiT, ViT, DINOv2, CLIP, MAE and others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, Format
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from atm_export.config import ModelConfig, ModelSpec
from atm_export.errors import (
    AtmExportError,
    ConfigError,
    UnsupportedModelError,
    WeightsError,
    unknown_name,
)
from atm_export.inputs import Preprocessing
from atm_export.model.backbone import (
    Answer,
    Backbone,
    BlockParts,
    Limited,
    LoadedModel,
    families,
)
from atm_export.model.dense import Patches, notes_of_patches, patches_of
from atm_export.model.embedding import Embedding, embedding_of, notes_of
from atm_export.model.flops import linear_weights, module_macs
from atm_export.model.hub import HUB, cache_only_without_network, described, weights_of
from atm_export.model.pooling import POOLS, pooled
from atm_export.model.published import (
    imagenet_labels,
    load_weights,
    overridden,
    published_licence,
    take_apart,
)
from atm_export.model.weights import (
    check_finite,
    load_strictly,
    read_checkpoint,
    state_digest,
)
from atm_export.tasks.dense import Dense
from atm_export.tasks.embed import Embed

PLAIN = "timm:vit_small_patch16_224 and timm:vit_small_patch14_dinov2"


class TimmBackbone(Backbone):
    """A timm VisionTransformer seen as embed -> blocks -> head."""

    def __init__(
        self,
        model: VisionTransformer,
        name: str,
        proportional: bool = True,
        embeds: Embedding | None = None,
        patches: Patches | None = None,
    ) -> None:
        super().__init__()
        refuse_unsupported(model, name, pools=patches is None)
        self.model = model
        self.proportional = proportional
        self.prefix = model.num_prefix_tokens
        self.distilled = isinstance(model, VisionTransformerDistilled)
        self.head_rows = (1 + self.distilled) if model.global_pool == "token" else None
        self.image_size = tuple(model.patch_embed.img_size)
        self.channels = _channels(model.patch_embed)
        self.grid = tuple(model.patch_embed.grid_size)
        self.classes = model.num_classes or model.num_features
        self.embeds = embeds
        if embeds is not None:
            self.task = Embed.name
            self.classes = self.classes if embeds.projected else model.head_hidden_size
        if patches is not None:
            self.task, self.unmerges, self.layers = Dense.name, True, patches.layers
            self.head_rows, self.classes = None, model.num_features

    def embed(self, image: Tensor) -> Tensor:
        model = self.model
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))

    def parts(self) -> list[BlockParts]:
        return [take_apart(block) for block in self.model.blocks]

    def head(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        model, embeds = self.model, self.embeds
        tokens = model.norm(tokens)
        bare = embeds is not None and not embeds.projected
        if self.head_rows is not None:
            answer = model.forward_head(tokens, pre_logits=bare)
        else:
            vector = model.fc_norm(pooled(model, tokens, sizes))
            answer = vector if bare else model.head(vector)
        return F.normalize(answer, dim=-1) if embeds is not None and embeds.normalize else answer

    def dense(self, tokens: Tensor) -> Tensor:
        return self.model.norm(tokens).unflatten(1, self.grid)

    def plain(self, image: Tensor) -> Answer:
        model = self.model
        if self.unmerges:
            layers = sorted(self.read_after)
            found = dict(
                zip(layers, model.get_intermediate_layers(image, layers, norm=True), strict=True)
            )
            return tuple(found[i].unflatten(1, self.grid) for i in self.read_after)
        if self.embeds is None:
            return model(image)
        features = model.forward_features(image)
        if self.distilled and self.head_rows is None:
            answer = model.fc_norm(model.pool(features))  # its own head knows no other pooling
        else:
            answer = model.forward_head(features, pre_logits=not self.embeds.projected)
        return F.normalize(answer, dim=-1) if self.embeds.normalize else answer

    def stem_gmacs(self) -> float:
        return module_macs(self.model.patch_embed, self.blank()) / 1e9

    def head_macs(self, tokens: Tensor) -> Tensor:
        heads = [self.model.head] + ([self.model.head_dist] if self.distilled else [])
        if self.unmerges or (self.embeds is not None and not self.embeds.projected):
            heads = []
        total = torch.full_like(tokens, sum(linear_weights(head) for head in heads))
        if self.model.attn_pool is not None and not self.unmerges:
            pool = self.model.attn_pool
            width = self.model.embed_dim
            total += tokens * (pool.kv.weight.numel() + 2 * width)
            total += linear_weights(pool) - pool.kv.weight.numel()
        return total


def _channels(stem: nn.Module) -> int:
    """Channels of the image: those of the first convolution, a hybrid's being its ResNet's."""
    first = next(module for module in stem.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels


def refuse_unsupported(model: nn.Module, name: str, *, pools: bool = True) -> None:
    """UnsupportedModelError for models whose tokens cannot be merged, with the reason. pools: the
    answer is of its own pooling."""

    def refuse(reason: str) -> None:
        raise UnsupportedModelError(
            f"{name} is not supported: {reason}; plain ones are for example {PLAIN}"
        )

    kind = type(model).__name__
    if not isinstance(model, VisionTransformer):
        rope = any(
            "Rope" in type(m).__name__ or "Rotary" in type(m).__name__ for m in model.modules()
        )
        if rope:
            refuse(f"{kind} uses rotary position embeddings, which merged tokens no longer have")
        relative = any("RelPos" in type(m).__name__ for m in model.modules()) or any(
            "relative_position_bias_table" in name for name, _ in model.named_parameters()
        )
        if relative and hasattr(model, "blocks"):
            refuse(f"{kind} adds a relative position bias, which merged tokens no longer have")
        refuse(
            f"{kind} is not a plain VisionTransformer (windowed, hierarchical or of another kind)"
        )
    assert isinstance(model, VisionTransformer)
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        refuse(f"{kind} changes the plain VisionTransformer's forward pass")
    for block in model.blocks:
        if type(block) is not Block:
            refuse(f"its blocks are {type(block).__name__}, not plain pre-norm blocks")
        if type(block.attn) is not Attention:
            refuse(f"its attention is {type(block.attn).__name__}, not plain self-attention")
        if getattr(block.attn, "gate", None) is not None:
            refuse("its attention output is gated")
    if pools and not model.global_pool:
        raise UnsupportedModelError(
            f"{name} gives its tokens as they are (its pooling is ''): say by --task embed --pool "
            "token or avg what its embedding is, or give --task dense"
        )
    if pools and model.global_pool not in POOLS:
        refuse(f"its pooling is '{model.global_pool}', not one of {', '.join(POOLS)}")
    if model.patch_embed.grid_size is None:
        refuse("its patch grid is not fixed")
    if model.patch_embed.num_patches < 2:
        refuse("it has a single patch, which nothing can merge with")


def build_timm(spec: ModelSpec) -> LoadedModel:
    """The timm family: build, load weights, resize position embeddings as timm does."""
    config, pretrained_cfg = _source(spec.config)
    options: dict[str, Any] = dict(config.options)
    pools = spec.pool is None and spec.task != Dense.name
    if config is not spec.config:
        options["pretrained_cfg"] = pretrained_cfg
    _refuse_early(config, spec.name, options, pools)
    model = _create(config, options, pretrained=False)
    refuse_unsupported(model, spec.name, pools=pools)
    facts = _load_weights(model, spec, options)
    if model.dynamic_img_size:
        # The size is fixed at export: patches are flattened where they are embedded.
        model.dynamic_img_size = False
        model.patch_embed.flatten, model.patch_embed.output_fmt = True, Format.NCHW
    size = (spec.image_size,) * 2 if spec.image_size else _own_size(options, pretrained_cfg)
    if size != tuple(model.patch_embed.img_size):
        _resize(model, size, spec.name)
    embeds = embedding_of(model, spec, config.architecture, pretrained_cfg)
    patches = patches_of(spec, len(model.blocks))
    backbone = TimmBackbone(model, spec.name, config.proportional, embeds, patches)
    return LoadedModel(
        name=spec.name,
        backbone=backbone,
        preprocessing=_preprocessing(config, pretrained_cfg, backbone.image_size),
        weights=facts,
        labels=None if embeds or patches else _labels(model, pretrained_cfg),
        licence=_licence(spec, pretrained_cfg),
        notes=notes_of_patches(patches.layers) if patches else notes_of(model, embeds),
    )


def _source(config: ModelConfig) -> tuple[ModelConfig, Any]:
    """The config with the architecture and arguments that a repository of the hub states, where it
    names one; and what timm says of the weights."""
    if not config.architecture.startswith(HUB):
        return config, _pretrained_cfg(config)
    found = described(config.architecture)
    if found.architecture not in timm.list_models():
        raise unknown_name("timm model", found.architecture, timm.list_models())
    stated = {"architecture": found.architecture, "options": {**found.arguments, **config.options}}
    return config.model_copy(update=stated), found.cfg


def _labels(model: VisionTransformer, cfg: Any) -> tuple[str, ...] | None:
    """Names of the classes: those that the weights bring, or ImageNet's."""
    own = cfg.label_names or ()
    if own and len(own) == model.num_classes and all(isinstance(name, str) for name in own):
        return tuple(own)
    return imagenet_labels(model.num_classes)


def _refuse_early(config: ModelConfig, name: str, options: dict[str, Any], pools: bool) -> None:
    """Look at the model without its memory, which may be many gigabytes, where timm can do so."""
    try:
        with torch.device("meta"):
            model = _create(config, options, pretrained=False)
    except (RuntimeError, NotImplementedError):  # an initialiser that wants real numbers
        return
    refuse_unsupported(model, name, pools=pools)


def _pretrained_cfg(config: ModelConfig) -> Any:
    name = config.architecture
    if name.split(".")[0] not in timm.list_models():
        raise unknown_name("timm model", name, timm.list_models())
    if "." in name and name not in timm.list_pretrained():
        raise unknown_name("timm weights tag", name, timm.list_pretrained())
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        raise unknown_name("timm model", name, timm.list_models())
    return cfg


def _create(config: ModelConfig, options: dict[str, Any], *, pretrained: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return timm.create_model(config.architecture, pretrained=pretrained, **options).eval()
        except (TypeError, AssertionError) as error:
            raise ConfigError(f"{config.architecture}: {str(error).splitlines()[0]}") from error


def _load_weights(
    model: VisionTransformer, spec: ModelSpec, options: dict[str, Any]
) -> dict[str, Any]:
    if spec.weights != "pretrained" or spec.config.published is not None:
        return load_weights(model, spec)
    if spec.config.architecture.startswith(HUB):
        load_strictly(model, read_checkpoint(weights_of(spec.config.architecture)), spec.name)
        return {"source": spec.config.architecture, "sha256": state_digest(model)}
    model.load_state_dict(_fetch(spec, options).state_dict())
    check_finite(model.state_dict(), spec.name)
    source = f"timm:{model.pretrained_cfg.get('architecture')}"
    return {"source": source, "sha256": state_digest(model)}


def _licence(spec: ModelSpec, cfg: Any) -> str | None:
    if spec.config.published is not None:
        return published_licence(spec)
    return cfg.license if spec.weights == "pretrained" else None


def _fetch(spec: ModelSpec, options: dict[str, Any]) -> nn.Module:
    offer = "give --weights FILE (.safetensors or .pth) or --weights random"
    try:
        with cache_only_without_network():
            return _create(spec.config, options, pretrained=True)
    except AtmExportError:
        raise
    except Exception as error:  # any of a dozen network and hub errors, all with the same remedy
        raise WeightsError(
            f"pretrained weights of {spec.config.architecture} cannot be fetched "
            f"({type(error).__name__}); {offer}"
        ) from error


def _own_size(options: Mapping[str, Any], cfg: Any) -> tuple[int, int]:
    """Height and width that the config's options name, else those of the pretrained weights."""
    own = options.get("img_size", cfg.input_size[-1])
    return (own[0], own[1]) if isinstance(own, list | tuple) else (own, own)


def _resize(model: VisionTransformer, size: tuple[int, int], name: str) -> None:
    patch = model.patch_embed.patch_size
    if size[0] % patch[0] or size[1] % patch[1]:
        raise ConfigError(
            f"--image-size {size[0]} is not a multiple of {name}'s patch size {patch[0]}"
        )
    model.set_input_size(img_size=size)


def _preprocessing(config: ModelConfig, cfg: Any, size: tuple[int, int]) -> Preprocessing:
    values: dict[str, Any] = {
        "crop_pct": cfg.crop_pct,
        "interpolation": cfg.interpolation,
        "mean": tuple(cfg.mean),
        "std": tuple(cfg.std),
        "crop_mode": cfg.crop_mode,
    }
    return Preprocessing(size=size, **overridden(values, config))


OPTIONS = ("global_pool", "num_classes")  # timm takes many more, some of which load files
families.add("timm", Limited(build_timm, "timm models", OPTIONS))
