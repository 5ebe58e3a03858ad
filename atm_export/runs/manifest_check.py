"""What a manifest must hold for its values (`runs.manifest`) to be made of it.

Nothing here imports more than NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atm_export.inputs import CROP_MODES, INTERPOLATIONS, MOST_CHANNELS, resize_of, shape_of
from atm_export.shapes import (
    Misfit,
    anything,
    either,
    fields,
    flag,
    items,
    matching,
    maybe,
    number,
    one_of,
    sha256,
    table,
    text,
    whole,
)
from atm_export.tasks.stated import check_stated, check_task, task_facts

MOST_TOKENS = 65_536
SIDE = whole(1, 4096)
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8")
ENGINE_DTYPES = ("float32", "float16", "bfloat16", "uint8", "int32", "int64")

_PROFILE = matching(r"\d{1,6}:\d{1,6}:\d{1,6}", "min:opt:max")
BUILT = ("engines", "low_precision")
NEEDED = ("model.onnx", "config.yaml", "report.json")
FILES = fields({"files": table(fields({"bytes": whole(), "sha256": sha256}))})

_INPUT = fields(
    {
        "name": text,
        "shape": items(anything, 4, 4),
        "dtype": one_of("float32", "uint8"),
        "normalised": flag,
    }
)
_OUTPUT = fields({"shape": items(anything, 1, 4), "dtype": one_of("float32", "int64")})
_METHOD = fields(
    {
        "name": text,
        "merge": one_of("adaptive", "frozen", "per-image"),
        "summary": text,
    },
    {  # what a method adds; ATM and ToMe these
        "preset": maybe(text),
        "operating_point": maybe(
            fields({name: number() for name in ("alpha", "beta", "theta_min")})
        ),
        "theta_per_block": items(maybe(number()), 1, 4096),
        "r_per_block": items(maybe(whole(0, MOST_TOKENS)), 1, 4096),
        "groups_per_block": items(maybe(text), 1, 4096),
    },
)
_PREPROCESSING = fields(
    {
        "size": items(SIDE, 2, 2),
        "crop_pct": number(0.05, 4),
        "interpolation": one_of(*INTERPOLATIONS),
        "crop_mode": one_of(*CROP_MODES),
        "resize": items(whole(1), 2, 2),
        "mean": items(number(-1000, 1000), 1, MOST_CHANNELS),
        "std": items(number(1e-6, 1000), 1, MOST_CHANNELS),
    }
)
_GOLDEN = fields(
    {
        "file": text,
        "tolerance": fields({"picture_grey_levels": number(0, 255)}),  # and `check_stated`'s
    }
)
_SHARE = fields(
    {"percent": maybe(number()), "low": number(), "high": number(), "hits": whole(), "of": whole()}
)
_SOURCE = fields({"file": text, "sha256": sha256})
_VALIDATION = fields(
    {"images": whole(), "tolerance": fields({})},
    {
        "top1_agreement": either(number(), _SHARE),  # a mere share in runs older than intervals
        "tokens_differing": _SHARE,
        "token_share_differing": number(),
    },
)
_LOW_PRECISION = fields(
    {
        "backend": text,
        "precision": one_of(*PRECISIONS),
        "source": _SOURCE,
        "bytes": whole(),
        "validation": _VALIDATION,
    }
)
_ENGINE = fields(
    {
        "precision": one_of(*PRECISIONS),
        "flavor": one_of("tensorrt", "rtx"),
        "tensorrt": text,
        "sms": items(whole(50, 999), 1, 64),
        "source": _SOURCE,
        "profiles": items(_PROFILE, 1, 64),
        "tensors": table(
            fields({"dtype": one_of(*ENGINE_DTYPES), "shape": items(whole(-1), 1, 8)})
        ),
        "bytes": whole(),
        "build": fields({"activation_bytes": maybe(whole())}),
        "run": fields({"status": text}, {"recommendation": text}),
        "validation": _VALIDATION,
    },
    {"settings": fields({}, {"hardware_compatible": flag, "version_compatible": flag})},
)
_MANIFEST = fields(
    {
        "run_key": text,
        "status": text,
        "model": text,
        "config": fields({}),
        "weights": fields({"sha256": sha256}),
        "method": _METHOD,
        "interface": fields(
            {"input": _INPUT, "outputs": table(_OUTPUT)},
        ),
        "opset": whole(1, 1000),
        "preprocessing": _PREPROCESSING,
        "labels": maybe(items(text)),
        "licence": maybe(text),
        "notes": items(text),
        "golden": maybe(_GOLDEN),
    },
    {
        "engines": table(_ENGINE),
        "low_precision": table(_LOW_PRECISION),
        "proven_on": table(text),
        "graphs": table(text),
        "task": check_task,
    },
)


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Misfit, a ValueError, names the first field that is missing or cannot be meant."""
    FILES(manifest, "")
    _MANIFEST(manifest, "")
    _check_files(manifest)
    _check_interface(manifest)
    check_stated(manifest)
    _check_validations(manifest)
    blocks = {
        len(manifest["method"][name])
        for name in ("theta_per_block", "r_per_block", "groups_per_block")
        if name in manifest["method"]
    }
    if len(blocks) > 1:
        raise Misfit("method tells of different numbers of blocks")


def _check_files(manifest: Mapping[str, Any]) -> None:
    golden = manifest["golden"]
    named = [*NEEDED, *manifest.get("graphs", {}).values()]
    named += [*(name for table in BUILT for name in manifest.get(table, {}))]
    for name in named if golden is None else [*named, golden["file"]]:
        if name not in manifest["files"]:
            raise Misfit(f"files does not list {name[:80]!r}")


def _check_validations(manifest: Mapping[str, Any]) -> None:
    """How far the main output of each engine and low precision may turn from the reference's."""
    main = task_facts(manifest)["outputs"][0]["name"]
    judged = fields(
        dict.fromkeys((f"cosine_{main}_of_nine_tenths", f"min_cosine_{main}"), number())
    )
    for kind in BUILT:
        for name, entry in manifest.get(kind, {}).items():
            at = f"{kind}.{name}.validation"
            judged(entry["validation"], at)
            fields({f"min_cosine_{main}": number()})(
                entry["validation"]["tolerance"], f"{at}.tolerance"
            )


def _check_interface(manifest: Mapping[str, Any]) -> None:
    """Input and preprocessing must be of one size and number of channels."""
    facts, outputs = manifest["interface"]["input"], manifest["interface"]["outputs"]
    how = manifest["preprocessing"]
    if len(how["mean"]) != len(how["std"]):
        raise Misfit("preprocessing.mean and preprocessing.std must be of one length")
    resize = list(resize_of(tuple(how["size"]), how["crop_pct"]))
    if how["resize"] != resize:
        raise Misfit(f"preprocessing.resize must be {resize}, as size and crop_pct say")
    shape = list(shape_of(facts["dtype"], len(how["mean"]), tuple(how["size"])))
    if facts["shape"] != shape:
        raise Misfit(f"interface.input.shape must be {shape}, as dtype and preprocessing say")
    for name, output in outputs.items():
        axes = output["shape"][1:] if output["shape"][0] == "batch" else output["shape"]
        for i, length in enumerate(axes):
            whole(1, 10**7)(length, f"interface.outputs.{name}.shape[{i}]")
