"""Whether a finished run is the one that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atm_export.backends import ONNXRUNTIME
from atm_export.config import RunConfig, exported_config, stamped
from atm_export.errors import ConfigError, ManifestError
from atm_export.measure.data.images import ImageSet
from atm_export.model.backbone import LoadedModel
from atm_export.runs import writing
from atm_export.runs.manifest import PROVEN, Manifest
from atm_export.runs.reading import checked_manifest


def key_of(config: RunConfig, model: LoadedModel, images: ImageSet, calibration: ImageSet) -> str:
    """What tells a run from any other: settings, weights, images and versions."""
    return writing.run_key(
        {
            "config": config.digest(),
            "weights": model.weights["sha256"],
            "images": images.digest(),
            "calibration": calibration.digest(),
            "versions": writing.versions(),
        }
    )


def finished_run(config: RunConfig, out: Path, key: str, on: Sequence[str]) -> Manifest | None:
    """The finished run in `out` if it is that of `key`, proven on the backends `on`; None where
    there is none, or a broken one; ConfigError if it is another."""
    document = writing.finished_document(out)
    if document is None and (out / writing.MANIFEST).exists():
        raise ConfigError(
            f"{out} holds a run that this atm-export cannot read; "
            "give --force to replace it, or another --out"
        )
    if document is None or writing.broken_files(out, document):
        return None
    if document.get("status") != PROVEN:
        return None
    if document.get("run_key") == key:
        manifest = checked_manifest(out, document)
        return manifest if set(on) <= {ONNXRUNTIME, *manifest.proven_on} else None
    what = ", ".join(_differences(config, out, document)) or "weights, images or versions"
    raise ConfigError(
        f"{out} holds a finished run that differs in: {what}; "
        "give --force to replace it, or another --out"
    )


def _differences(config: RunConfig, out: Path, document: Mapping[str, Any]) -> list[str]:
    """Settings in which a finished run is another, as graphs state them."""
    config_of_it = document.get("config")
    if not isinstance(config_of_it, Mapping):
        return ["config"]
    try:
        theirs = stamped(exported_config(config_of_it, f"{out}/manifest.json"))
    except ManifestError:
        return ["config"]
    ours = stamped(config)
    return [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
