"""The graph under construction: a piece is translated once per kind, and placed with its own
weights as often as the model has it."""

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
from onnx import helper, numpy_helper
from torch import Tensor, nn

from atm_export.graph.pieces import Piece
from atm_export.graph.structure import structure
from atm_export.graph.translation_cache import parsed_once, translated_once
from atm_export.rewrite import names as named
from atm_export.rewrite.block import OF_RULES

Translations = dict[Callable[..., Any], Callable[..., Any]]  # torch operator to its ONNX
MODULES = "pkg.torch.onnx.class_hierarchy"  # where torch.onnx says which modules a node is part of


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


def place(
    sheet: Sheet,
    name: str,
    piece: Piece,
    example: Sequence[Tensor | None],
    axes: Sequence[tuple[int, ...]],
    inputs: Sequence[str],
) -> list[str]:
    """Add `piece` to the sheet with its inputs connected; returns the names of its outputs."""
    own = piece.eval().state_dict()
    kind = f"{piece.kind} {[tensor is None for tensor in example]}"
    if kind not in sheet.templates:
        facts = [
            None if tensor is None else (tensor.shape, str(tensor.dtype)) for tensor in example
        ]
        key = structure(piece, facts, axes, sheet.opset, list(sheet.translations.items()))
        sheet.templates[kind] = translated_once(
            key, own.keys(), lambda: _translate(piece, example, axes, sheet)
        )
    graph = sheet.templates[kind].graph
    connected = [given for given, tensor in zip(inputs, example, strict=True) if tensor is not None]
    names = dict(zip((value.name for value in graph.input), connected, strict=True))
    for tensor in graph.initializer:
        names[tensor.name] = f"{name}.{tensor.name.split('.', 1)[-1]}"
        array = own[tensor.name].numpy() if tensor.name in own else numpy_helper.to_array(tensor)
        sheet.constant(names[tensor.name], array)
    placed: list[onnx.NodeProto] = []
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
        placed.append(copy)
    _tag(graph.node, placed, sheet.nodes)
    sheet.nodes.extend(placed)
    return [names[value.name] for value in graph.output]


def _tag(
    given: Sequence[onnx.NodeProto],
    placed: Sequence[onnx.NodeProto],
    before: Sequence[onnx.NodeProto],
) -> None:
    """Tag what belongs to a rule, and what makes the values that it is handed, in this piece or in
    one `before` it."""
    modules = [f"'{kind.__module__}.{kind.__qualname__}'" for kind in OF_RULES]
    within = [
        any(p.key == MODULES and name in p.value for p in node.metadata_props for name in modules)
        for node in given
    ]
    handed = {name for node, own in zip(placed, within, strict=True) if own for name in node.input}
    for node, own in zip(placed, within, strict=True):
        if own:
            node.metadata_props.add(key=named.RULE, value="")
    for node in (*before, *placed):
        tags = {p.key for p in node.metadata_props}
        if handed & set(node.output) and not tags & {named.RULE, named.SIGNAL}:
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
                piece,
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
