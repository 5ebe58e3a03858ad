"""Does this machine give the numbers that PyTorch gave at export time?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atm_export.comparison import Comparison
from atm_export.inputs import InputSpec
from atm_export.runs.golden import Answers, Golden, read_golden
from atm_export.runs.reading import Run
from atm_export.runtime.pictures import decoded
from atm_export.tasks.agreement import Cosine
from atm_export.tasks.base import Output
from atm_export.tasks.stated import Statement

Array = NDArray[Any]


class Asked(Protocol):
    """What is compared: a session, as far as it matters here."""

    run_folder: Run
    input: InputSpec
    answers: Statement
    engine: Mapping[str, Any] | None

    def outputs(self, image: Array) -> dict[str, Array]: ...


def check_golden(session: Asked) -> list[Comparison]:
    """Every golden vector of the session's run: each image alone, a batch, a JPEG file."""
    golden = read_golden(session.run_folder)
    return [
        *compare_alone(session, golden, len(golden.images)),
        *_compare_batch(session, golden),
        *_compare_picture(session, golden),
    ]


def compare_alone(session: Asked, golden: Golden, count: int) -> list[Comparison]:
    """The first `count` images, each as a batch of one."""
    found = [_answers(session, pixels[None]) for pixels in golden.images[:count]]
    ours = {name: np.concatenate([each[name] for each in found]) for name in golden.alone}
    theirs = {name: array[: len(found)] for name, array in golden.alone.items()}
    return _compare(session, "single images", ours, theirs)


def _compare_batch(session: Asked, golden: Golden) -> list[Comparison]:
    count = len(golden.batch[session.answers.main.name])
    ours = _answers(session, golden.images[:count])
    return _compare(session, f"a batch of {count}", ours, golden.batch)


def _compare_picture(session: Asked, golden: Golden) -> list[Comparison]:
    if golden.picture is None:
        return []
    pixels = decoded(golden.picture.file.tobytes(), session.input.preprocessing)
    levels = np.abs(pixels.astype(int) - golden.picture.pixels).max()
    allowed = _allowed(session, "picture_grey_levels")
    ours = _answers(session, pixels[None])
    return [
        Comparison("grey levels of a JPEG file", float(levels), allowed),
        *_compare(session, "a JPEG file", ours, golden.picture.answers, "picture_"),
    ]


def _answers(session: Asked, pixels: Array) -> Answers:
    """Outputs of pictures as after the crop; NaN is left for the verdict to find."""
    return session.outputs(session.input.feed(pixels))


def _allowed(session: Asked, what: str) -> float:
    golden = session.run_folder.manifest.golden
    assert golden is not None, "there are vectors that `read_golden` has read"
    return float(golden.tolerance[what])


def _compare(
    session: Asked, what: str, ours: Answers, theirs: Answers, kind: str = ""
) -> list[Comparison]:
    """Each output; kind: the tolerance's, before the output's name."""
    return [
        _compare_output(session, what, output, ours[output.name], theirs[output.name], kind)
        for output in session.answers.outputs
    ]


def _compare_output(
    session: Asked, what: str, output: Output, ours: Array, theirs: Array, kind: str
) -> Comparison:
    """By the output's agreement; of an engine, which may round more, by the angle."""
    if session.engine is None:
        allowed = _allowed(session, f"{kind}{output.name}")
        return output.rule.compare(f"{output.name} of {what}", ours, theirs, allowed)
    least = f"min_cosine_{session.answers.main.name}"
    allowed = 1 - float(session.engine["validation"]["tolerance"][least])
    what = f"angle of the {output.name} of {what} (1 - cosine)"
    return Cosine().compare(what, ours, theirs, allowed)
