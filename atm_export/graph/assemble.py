"""torch -> ONNX, piece by piece: stem, blocks, head, joined into one graph.

A block is translated once per kind and then instantiated with each block's weights, which keeps
the translation to seconds and gives every value a name that says where it belongs
(`blocks.3/...`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from atm_export.graph import translations, translations_ragged
from atm_export.graph.translation_cache import parsed_once
from atm_export.inputs import InputSpec
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Answer, Backbone
from atm_export.rewrite import names as named
from atm_export.rewrite.block import OF_RULES, Merge, TwinBlock
from atm_export.rewrite.twin import Twin

Translations = dict[Callable[..., Any], Callable[..., Any]]  # torch operator to its ONNX
IR_VERSION = 10
MODULES = "pkg.torch.onnx.class_hierarchy"  # where torch.onnx says which modules a node is part of
EXAMPLE_TOKENS = 149  # any count that nothing in a model equals
TRACE_OUTPUTS = ("tokens_per_block", "token_maps", "patch_to_token")


class Piece(nn.Module):
    """A part of the model that is translated on its own; equal kinds share a translation."""

    @property
    def kind(self) -> str:
        return type(self).__name__


class Entry(Piece):
    """Image to tokens, or to the answer (`whole`); uint8 [B, H, W, C] is normalised here."""

    def __init__(
        self,
        backbone: Backbone,
        spec: InputSpec,
        whole: bool,
    ) -> None:
        super().__init__()
        self.backbone, self.uint8, self.whole = backbone, spec.uint8, whole
        mean, std = spec.preprocessing.mean, spec.preprocessing.std
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", 255.0 * torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", 255.0 * torch.tensor(std, dtype=torch.float32))

    def forward(self, image: Tensor) -> Answer:
        if self.uint8:
            image = ((image.float() - self.shift) / self.scale).permute(0, 3, 1, 2)
        return self.backbone.plain(image) if self.whole else self.backbone.embed(image)


class Head(Piece):
    """Tokens and merging sizes to the answer."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, tokens: Tensor, sizes: Tensor | None) -> Answer:
        return self.backbone.head(tokens, sizes)


class Block(Piece):
    """A twin block whose result is a flat tuple."""

    def __init__(self, block: TwinBlock) -> None:
        super().__init__()
        self.block = block

    @property
    def kind(self) -> str:
        return self.block.kind

    def forward(self, tokens: Tensor, sizes: Tensor | None, where: Tensor) -> tuple[Tensor, ...]:
        out = self.block(tokens, sizes, where)
        return tuple(t for t in out if t is not None) if isinstance(out, Merge) else (out,)


@dataclass
class Sheet:
    """The graph under construction."""

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, ir.TensorProtocol] = field(default_factory=dict)
    templates: dict[str, onnx.ModelProto] = field(default_factory=dict)
    translations: Translations = field(default_factory=dict)

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, array: Any) -> str:
        self.weights[name] = ir.tensor(np.asarray(array), name=name)  # shared, not copied
        return name


def onnx_from_model(
    backbone: Backbone,
    plan: MergePlan,
    spec: InputSpec,
    *,
    opset: int = 20,
) -> ir.Model:
    """The traced graph: the task's outputs, tokens_per_block [blocks], token_maps [blocks, batch,
    tokens] (where every embedded token is after each block), patch_to_token [batch, patches].

    A plan that merges nothing gives the model's own forward pass.
    """
    sample = torch.from_numpy(spec.feed(spec.blank(2)))
    tokens = backbone.tokens
    sheet = Sheet(opset, translations=_translations(plan))
    where = _first_map(sheet, spec.name, tokens)
    sheet.constant("tokens", np.array([tokens], dtype=np.int64))
    entry = Entry(backbone, spec, whole=not plan.merges)
    answer = _place(
        sheet, named.MODEL if entry.whole else named.EMBED, entry, [sample], [(0,)], [spec.name]
    )
    counts, maps = ["tokens"] * len(plan.blocks), [where] * len(plan.blocks)
    if plan.merges:
        answer, counts, maps = _place_blocks(sheet, Twin(backbone, plan), answer[0], where)
    for output, value in zip(backbone.outputs, answer, strict=True):
        sheet.node("Identity", [value], output.name)
    _place_trace(sheet, backbone, plan, counts, maps)
    return _model(sheet, backbone, plan, spec)


def _place_trace(
    sheet: Sheet, backbone: Backbone, plan: MergePlan, counts: list[str], maps: list[str]
) -> None:
    """The outputs that tell what became of the tokens."""
    told = counts
    if plan.per_image:
        told = _columns(sheet, counts)
    sheet.node("Concat", told, TRACE_OUTPUTS[0], axis=1 if plan.per_image else 0)
    stacked = [sheet.node("Unsqueeze", [m, "axis_0"], f"map_{i}") for i, m in enumerate(maps)]
    sheet.node("Concat", stacked, TRACE_OUTPUTS[1], axis=0)
    ends = {"patch_start": backbone.prefix, "patch_end": backbone.tokens, "axis_1": 1}
    for name, end in ends.items():
        sheet.constant(name, np.array([end], dtype=np.int64))
    sheet.node("Slice", [maps[-1], *ends], TRACE_OUTPUTS[2])


def _columns(sheet: Sheet, counts: Sequence[str]) -> list[str]:
    """Tokens per image of each block as [B, 1]; all images start with the same number."""
    per_image = sheet.node("Expand", ["tokens", "batch"], "tokens_each")
    counts = [per_image if count == "tokens" else count for count in counts]
    return [sheet.node("Unsqueeze", [c, "one"], f"count_{i}") for i, c in enumerate(counts)]


def _place_blocks(
    sheet: Sheet, twin: Twin, tokens: str, where: str
) -> tuple[list[str], list[str], list[str]]:
    """Blocks and head; returns the names of the answer's values, counts and maps."""
    sizes, count = "", "tokens"
    counts, maps = [], []
    for i, block in enumerate(twin.twin_blocks):
        out = _place_block(sheet, i, block, twin.tokens, [tokens, sizes, where])
        tokens = out[0]
        if len(out) == 4:
            sizes, where, count = out[1:]
        elif len(out) == 3:
            sizes, where = out[1:]
        elif len(out) == 2:
            where = out[1]
        if len(out) < 4 and block.count is not None:
            count = sheet.constant(
                named.of_block(i, "count"), np.array([block.count], dtype=np.int64)
            )
        counts.append(count)
        maps.append(where)
    return _place_head(sheet, twin, tokens, sizes), counts, maps


def _place_block(
    sheet: Sheet, i: int, block: TwinBlock, embedded: int, inputs: Sequence[str]
) -> list[str]:
    """One block; inputs: names of tokens, sizes ("": all 1) and places."""
    axes: tuple[int, ...] = (0, 1)
    n = EXAMPLE_TOKENS
    if block.static and block.tokens_in is not None:
        axes, n = (0,), block.tokens_in
    example = [
        torch.zeros(2, n, block.q.in_features),
        torch.ones(2, n, 1) if inputs[1] else None,
        torch.zeros(2, embedded).long(),
    ]
    return _place(sheet, named.block(i), Block(block), example, [axes, axes, (0,)], inputs)


def _place_head(sheet: Sheet, twin: Twin, tokens: str, sizes: str) -> list[str]:
    last = twin.twin_blocks[-1]
    example = [torch.zeros(2, last.kept or EXAMPLE_TOKENS, last.q.in_features), None]
    if last.kept is None and sizes:
        example[1] = torch.ones(2, EXAMPLE_TOKENS, 1)
    axes = [(0,) if last.kept else (0, 1), (0, 1)]
    return _place(sheet, named.HEAD, Head(twin.backbone), example, axes, [tokens, sizes])


def _place(
    sheet: Sheet,
    name: str,
    piece: Piece,
    example: Sequence[Tensor | None],
    axes: Sequence[tuple[int, ...]],
    inputs: Sequence[str],
) -> list[str]:
    """Add `piece` to the sheet with its inputs connected; returns the names of its outputs."""
    kind = f"{piece.kind} {[tensor is None for tensor in example]}"
    if kind not in sheet.templates:
        sheet.templates[kind] = _translate(piece, example, axes, sheet)
    graph = sheet.templates[kind].graph
    connected = [given for given, tensor in zip(inputs, example, strict=True) if tensor is not None]
    names = dict(zip((value.name for value in graph.input), connected, strict=True))
    own = piece.state_dict()
    for tensor in graph.initializer:
        names[tensor.name] = f"{name}.{tensor.name.split('.', 1)[-1]}"
        array = own[tensor.name].numpy() if tensor.name in own else numpy_helper.to_array(tensor)
        sheet.constant(names[tensor.name], array)
    for node in graph.node:
        for value in node.output:
            names[value] = f"{name}/{value}" if value else ""
        copy = helper.make_node(
            node.op_type,
            [names[value] if value else "" for value in node.input],
            [names[value] for value in node.output],
            domain=node.domain,
        )
        copy.attribute.extend(node.attribute)
        sheet.nodes.append(copy)
    _tag(graph.node, sheet.nodes[-len(graph.node) :])
    return [names[value.name] for value in graph.output]


def _tag(given: Sequence[onnx.NodeProto], placed: Sequence[onnx.NodeProto]) -> None:
    """Tag what belongs to a rule, and what makes the values that it is handed."""
    modules = [f"'{kind.__module__}.{kind.__qualname__}'" for kind in OF_RULES]
    within = [
        any(p.key == MODULES and name in p.value for p in node.metadata_props for name in modules)
        for node in given
    ]
    handed = {name for node, own in zip(placed, within, strict=True) if own for name in node.input}
    for node, own in zip(placed, within, strict=True):
        if own:
            node.metadata_props.add(key=named.RULE, value="")
        elif handed & set(node.output):
            node.metadata_props.add(key=named.SIGNAL, value="")


def _translate(
    piece: nn.Module,
    example: Sequence[Tensor | None],
    axes: Sequence[tuple[int, ...]],
    sheet: Sheet,
) -> onnx.ModelProto:
    symbols = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    dynamic = tuple(
        None if tensor is None else {axis: symbols[axis] for axis in fixed}
        for tensor, fixed in zip(example, axes, strict=True)
    )
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), parsed_once():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                piece.eval(),
                tuple(example),
                dynamo=True,
                dynamic_shapes=dynamic,
                # From 23 on torch would write the Attention operator, which builders refuse in
                # FP32; no other operator that it writes differs.
                opset_version=min(sheet.opset, 22),
                custom_translation_table=sheet.translations,
                optimize=False,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    return program.model_proto


def _translations(plan: MergePlan) -> Translations:
    """The ONNX of every operator that blocks and their rules may call."""
    found = {**translations.TABLE, **translations_ragged.TABLE}
    for rule in plan.blocks:
        found |= {} if rule is None else rule.translations()
    return found


def _first_map(sheet: Sheet, image: str, tokens: int) -> str:
    """Every embedded token at its own position, [B, N0]."""
    sheet.constant("positions", np.arange(tokens, dtype=np.int64)[None])
    sheet.constant("axis_0", np.array([0], dtype=np.int64))
    sheet.constant("one", np.array([1], dtype=np.int64))
    sheet.node("Shape", [image], "batch", start=0, end=1)
    sheet.node("Concat", ["batch", "one"], "map_shape", axis=0)
    return sheet.node("Expand", ["positions", "map_shape"], "map")


def _model(sheet: Sheet, backbone: Backbone, plan: MergePlan, spec: InputSpec) -> ir.Model:
    tokens = backbone.tokens
    blocks = len(plan.blocks)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        sheet.nodes,
        "atm_export",
        [info(spec.name, kind, list(spec.shape))],
        [
            *(info(out.name, TensorProto.FLOAT, list(out.shape)) for out in backbone.outputs),
            info(
                TRACE_OUTPUTS[0],
                TensorProto.INT64,
                ["batch", blocks] if plan.per_image else [blocks],
            ),
            info(TRACE_OUTPUTS[1], TensorProto.INT64, [blocks, "batch", tokens]),
            info(TRACE_OUTPUTS[2], TensorProto.INT64, ["batch", tokens - backbone.prefix]),
        ],
        [_declared(name, tensor) for name, tensor in sheet.weights.items()],
    )
    opsets = [helper.make_opsetid("", sheet.opset)]
    model = ir.from_proto(
        helper.make_model(
            graph, producer_name="atm-export", ir_version=IR_VERSION, opset_imports=opsets
        )
    )
    for name, tensor in sheet.weights.items():
        model.graph.initializers[name].const_value = tensor
    return model


def _declared(name: str, tensor: ir.TensorProtocol) -> TensorProto:
    """Name, type and shape of a weight, without its numbers."""
    return TensorProto(name=name, data_type=tensor.dtype, dims=tensor.shape.numpy())
