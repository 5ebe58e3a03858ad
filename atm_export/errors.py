"""Every error a user can meet, in one tree. The number is the process exit code and never changes.

AtmExportError                1   anything else that has one clear line
├── ConfigError               2   an argument, preset or setting that cannot be meant
├── WeightsError              3   weights missing, damaged, non-finite, or of another architecture
│   └── OtherWeightsError         whole, but not those of the export
├── UnsupportedModelError     4   a model that token merging would break
├── ParityError               5   the export does not take the decisions PyTorch takes
├── GraphLintError            6   a known trap in the ONNX graph
├── OutputError               7   the output folder cannot be written, is full, or is in use
├── MissingDependencyError    8   an optional package is not installed
├── DataError                 9   images or labels that cannot be read
│   ├── ImageSizeError            a picture beyond the limits of size and shape
│   └── ClassOrderError           class folders that may be numbered in two ways
├── RunFolderError           10   a run folder that cannot be trusted
│   ├── NotARunError              no manifest there
│   ├── ManifestError             the manifest is damaged or was changed
│   ├── RunFormatError            written by another format version
│   ├── MissingFileError          a file of the manifest is missing
│   ├── ChangedFileError          a file's bytes are not those of the export
│   ├── UnprovenError             parity with PyTorch was not proven
│   ├── RuntimeVersionError       the installed ONNX Runtime is too old for the graph
│   ├── GoldenMismatchError       this machine does not give the numbers of the export
│   └── EngineMismatchError       an engine for another GPU, flavor or graph
│       └── EngineVersionError        an engine for another TensorRT version
├── EngineBuildError         11   a parser or builder that does not take the graph
└── NonFiniteError           12   an answer that holds NaN or infinity
Ctrl-C                      130
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AtmExportError(Exception):
    """Base of all expected failures; the message says what, where, and how to fix it."""

    exit_code = 1


class ConfigError(AtmExportError):
    """A setting that cannot be meant."""

    exit_code = 2


class WeightsError(AtmExportError):
    """Weights that are missing, damaged, non-finite, or of another architecture."""

    exit_code = 3


class OtherWeightsError(WeightsError):
    """Weights that are whole, but not those of the export."""


class UnsupportedModelError(AtmExportError):
    """A model that token merging would break."""

    exit_code = 4


class ParityError(AtmExportError):
    """The export and PyTorch disagree."""

    exit_code = 5


class GraphLintError(AtmExportError):
    """The ONNX graph contains a known trap."""

    exit_code = 6


class OutputError(AtmExportError):
    """The output folder cannot be used."""

    exit_code = 7


class MissingDependencyError(AtmExportError):
    """An optional package is not installed; the message names the extra."""

    exit_code = 8


class DataError(AtmExportError):
    """Images or labels that cannot be read."""

    exit_code = 9


class ImageSizeError(DataError):
    """A picture with too many pixels, too long and thin, or empty."""


class ClassOrderError(DataError):
    """There is a folder for each class, but their names have two orders."""


class RunFolderError(AtmExportError):
    """A run folder that cannot be trusted."""

    exit_code = 10


class NotARunError(RunFolderError):
    """There is no manifest in the folder."""


class ManifestError(RunFolderError):
    """The manifest is damaged, or was changed after the export."""


class RunFormatError(RunFolderError):
    """The folder was written in another format version."""


class MissingFileError(RunFolderError):
    """A file that the manifest lists is missing."""


class ChangedFileError(RunFolderError):
    """A file's bytes are not those of the export."""


class UnprovenError(RunFolderError):
    """The run's parity with PyTorch was not proven."""


class RuntimeVersionError(RunFolderError):
    """The installed ONNX Runtime is too old for the graph's opset."""


class GoldenMismatchError(RunFolderError):
    """This machine does not give the numbers of the export."""


class EngineMismatchError(RunFolderError):
    """An engine was built for another flavor, GPU or graph."""


class EngineVersionError(EngineMismatchError):
    """An engine was built by another TensorRT version."""


class EngineBuildError(AtmExportError):
    """TensorRT's parser or builder does not make an engine of the graph."""

    exit_code = 11


class NonFiniteError(AtmExportError):
    """Logits that hold NaN or infinity: they rank nothing."""

    exit_code = 12


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> ConfigError:
    """Build the error for an unknown `name`, offering the nearest of the `known` ones."""
    names = sorted(known)
    begins = [known_name for known_name in names if known_name.startswith(name)][:3]
    alike = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    near = list(dict.fromkeys([*begins, *alike]))[:3]
    offer = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(names[:12])}"
    if not near and len(names) > 12:
        offer += f", ... ({len(names)} in all)"
    return ConfigError(f"unknown {kind} '{name}'; {offer}{'; ' + hint if hint else ''}")
