"""A graph in OpenVINO's own format, whose matching stays in FP32 when the rest runs in bfloat16.

`INFERENCE_PRECISION_HINT` lowers a whole model. A node is left alone where its runtime information
says so (`DisablePrecisionConversion`, openvino/src/common/transformations), which ONNX cannot say
and the format can. Nodes that OpenVINO rewrites lose it: what they become is written here.
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from pathlib import Path
from typing import Any

from atm_export.backends.openvino.door import library_and_model
from atm_export.backends.openvino.marks import MARK
from atm_export.runs.graphs import SavedGraph

LEAST = 1e-12  # of a length
LOWEST = -(2.0**24)  # below every similarity: without it OpenVINO sees the difference again


def with_marks(graph: SavedGraph, keep: Collection[str], name: str) -> SavedGraph:
    """An ONNX graph in OpenVINO's format. keep: nodes that stay in FP32; name: of the file.

    AtmExportError with one line where OpenVINO does not take the graph.
    """
    library, model = library_and_model(graph)
    _written_out(library, model, keep)
    kept = _named(model, keep)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.xml"
        library.serialize(model, file)
        tree = ElementTree.parse(file)
        weights = file.with_suffix(".bin").read_bytes()
    for layer in tree.iter("layer"):
        if layer.get("name") in kept:
            ElementTree.SubElement(_child(layer, "rt_info"), "attribute", MARK)
    text = ElementTree.tostring(tree.getroot(), encoding="utf-8", xml_declaration=True)
    return SavedGraph(text, {Path(name).with_suffix(".bin").name: weights})


def _written_out(library: Any, model: Any, keep: Collection[str]) -> None:
    """Write kept nodes so that no transformation makes others of them: a transposed factor as an
    attribute of its product, a division by a root with a bound in between, a difference as a sum;
    and leave out bounds that say what is so."""
    operators = library.opset13
    for node in model.get_ordered_ops():
        if node.get_friendly_name() not in keep or node.get_input_size() < 2:
            continue
        kind, (one, other) = node.get_type_name(), (node.input_value(i) for i in range(2))
        other_kind = other.get_node().get_type_name()
        if kind == "MatMul" and other_kind == "Transpose":
            factor = other.get_node().input_value(0)
            _replace(node, operators.matmul(one, factor, False, True).output(0))
        elif kind == "Divide" and other_kind == "Sqrt":
            least = operators.constant(LEAST, dtype=library.Type.f32)
            node.input(1).replace_source_output(operators.maximum(other, least).output(0))
        elif kind == "Subtract" and one.get_element_type() == library.Type.f32:
            minus, least = (
                operators.constant(value, dtype=library.Type.f32) for value in (-1.0, LOWEST)
            )
            negative = operators.maximum(operators.multiply(other, minus), least)
            _replace(node, operators.add(one, negative).output(0))
        elif kind == "Minimum" and "Maximum" in (one.get_node().get_type_name(), other_kind):
            bound = (other if other_kind == "Maximum" else one).get_node()
            if bound.get_friendly_name() not in keep:  # of the same Clip
                first, second = (bound.input_value(i) for i in range(2))
                constant = first.get_node().get_type_name() == "Constant"
                _replace(node, second if constant else first, rename=False)
        elif kind == "Transpose" and len(shape := _static(one)) == 3 and 1 in shape[1:]:
            moved = operators.reshape(one, [0, shape[2], shape[1]], special_zero=True)
            _replace(node, moved.output(0))


def _static(value: Any) -> list[int]:
    """Lengths of the axes, -1 where one is free."""
    return [axis.get_length() if axis.is_static else -1 for axis in value.get_partial_shape()]


def _replace(node: Any, value: Any, *, rename: bool = True) -> None:
    """Let what reads the node read `value`; rename: which takes its name."""
    if rename:
        value.get_node().set_friendly_name(node.get_friendly_name())
    for use in list(node.output(0).get_target_inputs()):
        use.replace_source_output(value)


def _named(model: Any, keep: Collection[str]) -> set[str]:
    """Nodes to keep, with those that OpenVINO put in the place of one of them; such nodes are named
    by their place, for a counter of the process names them."""
    kept = set(keep)
    nodes = model.get_ordered_ops()
    for i, node in enumerate(nodes):
        if "/" not in node.get_friendly_name() and _counted(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{i}")
    for node in reversed(nodes):
        if node.get_friendly_name() not in kept:
            continue
        if _repeats_a_number(node):
            kept.remove(node.get_friendly_name())
            continue
        for source in (each.get_source_output().get_node() for each in node.inputs()):
            name = source.get_friendly_name()
            if name.startswith(f"{source.get_type_name()}."):
                kept.add(name)
    return kept


def _repeats_a_number(node: Any) -> bool:
    """Such as the sizes before any merge, which are 1: exact in any precision, and folded."""
    made = node.get_input_size() and node.input_value(0).get_node()
    return node.get_type_name() == "Broadcast" and made.get_type_name() == "Constant"


def _counted(name: str) -> bool:
    kind, _, number = name.rpartition("_")
    return bool(kind) and number.isdigit()


def _child(layer: ElementTree.Element, tag: str) -> ElementTree.Element:
    found = layer.find(tag)
    return ElementTree.SubElement(layer, tag) if found is None else found
