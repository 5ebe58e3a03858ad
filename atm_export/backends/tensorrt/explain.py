"""Parser and builder errors in plain words: which node, which operator, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

# (pattern in the log, what it means and how to fix it)
REASONS = (
    (r"dimensions have overflown|Assertion bound >= 0", "a data-dependent length has no lower "
     "bound that the builder can prove; bound it with Max(length, 0)"),
    (r"Assertion x != nullptr", "a count that decides a length was reduced in integers; reduce "
     "it in float and cast the result"),
    (r"Unsupported reduction type|with reduction is not supported", "Scatter with a reduction is "
     "not supported; use a one-hot matrix product"),
    (r"[Pp]lugin not found|NonZero", "an operator that this TensorRT does not have natively"),
    (r"not supported by a dedicated kernel", "opset-23 Attention has no kernel for these types; "
     "use MatMul and Softmax"),
    (r"libnvinfer_lean", "version-compatible engines need the lean runtime, which this TensorRT "
     "does not bring; leave out --version-compatible"),
    (r"graph_jit\.cpp.*CUDA_SUCCESS", "this build needs a GPU and none is here; of TensorRT-RTX's "
     "options, --refit is one that does"),
    (r"out of memory|OutOfMemory|[Ii]nsufficient memory", "not enough memory to build; lower the "
     "largest batch of --batch, or --workspace"),
    (r"CUDA driver version is insufficient|cudaError 35|no CUDA-capable device", "this step needs "
     "a GPU with a driver, and none is here"),
    (r"[Cc]ould not find any implementation", "no kernel fits these types and shapes on the "
     "target; try another --precision, or a larger --workspace"),
)  # fmt: skip


def explain_parser(errors: Iterable[Any]) -> str:
    """One line for the first error of an OnnxParser."""
    for error in errors:
        text = " ".join(str(error.desc()).split())
        name, kind = error.node_name(), error.node_operator()
        where = f"node {name or '?'} ({kind or '?'})"
        return f"the ONNX parser stops at {where}: {text}{_advice([text])}"
    return "the ONNX parser refuses the graph without saying why"


def explain_builder(log: Sequence[tuple[str, str]]) -> str:
    """One line for a failed build, from its log of (severity, message)."""
    bad = [text for severity, text in log if severity in ("ERROR", "INTERNAL_ERROR")]
    if not bad:
        return "the builder gives no engine and no reason; see the saved log"
    first = " ".join(bad[0].split())
    found = re.search(r"\{ForeignNode\[([^\]]*)\]\}|[Nn]ode:? ([\w./-]+)", " ".join(bad))
    where = f" at {next(filter(None, found.groups()))}" if found else ""
    return f"the build fails{where}: {first[:300]}{_advice(bad)}"


def kind_of(line: str) -> str:
    """What a line of `explain_*` says, without the names, places and numbers that differ from one
    graph to another: the same for the same failure."""
    return re.sub(r"node \S+ |at \S+:|\[[^\]]*\]|\{[^}]*\}|'[^']*'|\d+", "", line)


def _advice(texts: Sequence[str]) -> str:
    together = " ".join(texts)
    for pattern, reason in REASONS:
        if re.search(pattern, together):
            return f" ({reason})"
    return ""
