"""torch -> ONNX, piece by piece: stem, blocks, head, joined into one graph.

A block is translated once per kind and then instantiated with each block's weights, which keeps
the translation to seconds and gives every value a name that says where it belongs
(`blocks.3/...`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from onnx import TensorProto, helper

from atm_export.graph import translations, translations_ragged
from atm_export.graph.pieces import Block, Entry, Head, Patches
from atm_export.graph.sheet import Sheet, Translations, place
from atm_export.inputs import InputSpec
from atm_export.methods.plan import Form, MergePlan
from atm_export.model.backbone import Backbone
from atm_export.rewrite import names as named
from atm_export.rewrite.block import TwinBlock
from atm_export.rewrite.twin import Twin

IR_VERSION = 10
EXAMPLE_TOKENS = 149  # any count that nothing in a model equals
TRACE_OUTPUTS = ("tokens_per_block", "token_maps", "patch_to_token")


def onnx_from_model(
    backbone: Backbone,
    plan: MergePlan,
    spec: InputSpec,
    *,
    opset: int = 20,
    form: Form = "plain",
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
    answer = place(
        sheet, named.MODEL if entry.whole else named.EMBED, entry, [sample], [(0,)], [spec.name]
    )
    counts, maps = ["tokens"] * len(plan.blocks), [where] * len(plan.blocks)
    if plan.merges:
        answer, counts, maps = _place_blocks(sheet, Twin(backbone, plan, form), answer[0], where)
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
    counts, maps, states = [], [], []
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
        states.append(tokens)
    if not twin.backbone.unmerges:
        return _place_head(sheet, twin, tokens, sizes), counts, maps
    after = twin.backbone.read_after
    answers = [_place_patches(sheet, twin, i, states[i], maps[i]) for i in after]
    return answers, counts, maps


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
    return place(sheet, named.block(i), Block(block), example, [axes, axes, (0,)], inputs)


def _place_head(sheet: Sheet, twin: Twin, tokens: str, sizes: str) -> list[str]:
    last = twin.twin_blocks[-1]
    example = [torch.zeros(2, last.kept or EXAMPLE_TOKENS, last.q.in_features), None]
    if last.kept is None and sizes:
        example[1] = torch.ones(2, EXAMPLE_TOKENS, 1)
    axes = [(0,) if last.kept else (0, 1), (0, 1)]
    return place(sheet, named.HEAD, Head(twin.backbone), example, axes, [tokens, sizes])


def _place_patches(sheet: Sheet, twin: Twin, i: int, tokens: str, where: str) -> str:
    """The dense answer after block i."""
    width = twin.twin_blocks[i].q.in_features
    example = [torch.zeros(2, EXAMPLE_TOKENS, width), torch.zeros(2, twin.tokens).long()]
    piece, name = Patches(twin.backbone), named.head_after(i)
    return place(sheet, name, piece, example, [(0, 1), (0,)], [tokens, where])[0]


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
