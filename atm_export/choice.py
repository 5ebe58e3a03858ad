"""The main command's options, written once: names, defaults, help."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

from cyclopts import Group, Parameter

from atm_export.numbers import Whole

# auto: embed where the model has no classifier
WantedTask = Literal["auto", "classify", "embed", "dense"]
Pool = Literal["token", "avg", "map", "none"]

WHAT = Group("Model", sort_key=0)
HOW = Group("Merging", sort_key=1)
GRAPH = Group("Graph", sort_key=2)
RUN = Group("Run", sort_key=3)


def shown(group: Group, text: str, *names: str) -> Any:
    """How the command line shows an option; it has no negative form."""
    return Parameter(group=group, help=text, name=names or None, negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """All but the model; None: not given."""

    weights: Annotated[
        str,
        shown(
            WHAT,
            "pretrained (timm's, or the checkpoint's own), a file (.safetensors, or .pth without "
            "code), or random (stamped on every report: accuracy means nothing).",
        ),
    ] = "pretrained"
    image_size: Annotated[
        Whole | None,
        shown(
            WHAT,
            "Input height and width; position embeddings are interpolated as timm does, those of "
            "hf: models as transformers does.",
        ),
    ] = None
    task: Annotated[
        WantedTask,
        shown(
            WHAT,
            "What it answers. classify: a number for each class. embed (timm, tv: and hf: models): "
            "the vector before the classifier, or a projection such as CLIP's, of which the "
            "direction counts. dense (the same): a feature of every patch, [batch, rows, columns, "
            "dim], each that of the token that the patch was merged into. auto: embed where the "
            "model has no classifier.",
        ),
    ] = "auto"
    normalize: Annotated[bool, shown(WHAT, "Embeddings of length 1.")] = False
    pool: Annotated[
        Pool | None,
        shown(
            WHAT,
            "What of the final tokens is the embedding. token: the class token. avg: the mean of "
            "all patches, a merged token counting as many times as it holds patches. map: "
            "attention pooling, where the model has it. none is no one vector: see --task dense "
            "(default: as the model has it).",
        ),
    ] = None
    layers: Annotated[
        str | None,
        shown(
            WHAT,
            "Blocks, from 0, whose patches --task dense gives, as 2,5,8,11: outputs patches_2, "
            "patches_5, ..., each through the final norm (default: the last block's, as patches).",
        ),
    ] = None
    option: Annotated[
        tuple[str, ...],
        shown(
            WHAT,
            "NAME=VALUE: an option of the architecture, as a config's `options` has it. LV-ViT: "
            "aux_head=unmerged, always or never (who reads the auxiliary head); timm models: "
            "num_classes, global_pool. May be given again.",
        ),
    ] = ()
    method: Annotated[
        str | None,
        shown(
            HOW,
            "atm: thresholds decide; tome: fixed r; evit, diffrate, zerotprune (a precursor): what "
            "is attended to least goes; none: the unmerged model; or a plugin's (default: the "
            "preset's, atm).",
        ),
    ] = None
    settings: Annotated[
        tuple[str, ...],
        shown(
            HOW,
            "NAME=VALUE: a setting of the method, as `--set theta_min=0.9` or `--set r=16,14`. "
            "May be given again.",
            "--set",
        ),
    ] = ()
    preset: Annotated[
        str | None,
        shown(HOW, "A named operating point of the model (see `atm-export list MODEL`)."),
    ] = None
    gflops: Annotated[
        float | None,
        shown(
            HOW,
            "1e9 multiply-adds an image: the paper's preset nearest to it, at or below; with "
            "--merge-blocks, and where there are no such presets, the settings of the method that "
            "meet it on --images or on the photographs that ship.",
        ),
    ] = None
    alpha: Annotated[float | None, shown(HOW, "Threshold of block 1, a cosine.")] = None
    beta: Annotated[float | None, shown(HOW, "How fast thresholds fall from block to block.")] = (
        None
    )
    theta_min: Annotated[float | None, shown(HOW, "Lowest threshold, a cosine.")] = None
    split: Annotated[
        Whole | None,
        shown(HOW, "Last block that groups tokens alternately; later ones by size (3/4 of depth)."),
    ] = None
    merge_blocks: Annotated[
        str | None,
        shown(
            HOW,
            "Blocks that merge, from 1: 4,6,8,10, 4-8, every:2, auto, all (default: the preset's, "
            "all). Few merges with lower thresholds save as much in less time: auto takes every "
            "second block from a third of the depth on, and thresholds that cost --gflops, else "
            "the preset's.",
        ),
    ] = None
    r: Annotated[
        str | None,
        shown(
            HOW,
            "ToMe: tokens merged per block, one number or one a block (16,14,...).",
            "-r",
            "--r",
        ),
    ] = None
    schedule: Annotated[
        Literal["constant", "decreasing", "increasing"],
        shown(HOW, "ToMe: how r changes over the blocks; its mean stays r."),
    ] = "constant"
    proportional: Annotated[
        bool | None,
        Parameter(
            group=HOW,
            help="Weight attention by merging sizes (default: as the paper does for the model).",
            negative="--no-proportional",
        ),
    ] = None
    merge: Annotated[
        Literal["adaptive", "frozen", "per-image"],
        shown(
            HOW,
            "Who shares r. adaptive: the batch, at run time, as in the paper. frozen: fixed from "
            "--calibrate images, the paper's GFLOPs, or the images that ship; static shapes. "
            "per-image: each image alone, so that an answer never depends on its neighbours.",
        ),
    ] = "adaptive"
    calibrate: Annotated[
        str | None, shown(HOW, "Folder of images that a frozen schedule is measured on.")
    ] = None
    uint8_input: Annotated[
        bool, shown(GRAPH, "Take uint8 [batch, H, W, 3] and normalise inside the graph.")
    ] = False
    trace: Annotated[
        bool, shown(GRAPH, "Add outputs tokens_per_block and patch_to_token, for pictures.")
    ] = False
    opset: Annotated[Whole, shown(GRAPH, "ONNX opset, 20 to 23.")] = 20
    external_data: Annotated[
        Literal["auto", "always", "never"],
        shown(
            GRAPH,
            "Weights in model.onnx.data beside the graph. auto: where they have more than 1.9 GB, "
            "which is all that an ONNX file holds.",
        ),
    ] = "auto"
    images: Annotated[
        str | None,
        shown(RUN, "Folder of images to prove and measure on (else photographs that ship)."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Choice(Options):
    """A model and the main command's options."""

    model: str

    @classmethod
    def of(cls, model: str, options: Options) -> Self:
        """The choice of a command line."""
        return cls(model=model, **{f.name: getattr(options, f.name) for f in fields(options)})


USUAL = Options()
