"""Which counted batches of a journal still hold for a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atm_export.errors import NonFiniteError
from atm_export.measure.accuracy.journal import Journal
from atm_export.measure.data.samples import Samples
from atm_export.tasks.judge import Judge

_Count = Annotated[int, Field(ge=0)]
_Gmacs = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Counted(BaseModel):
    """A batch as `batches` writes it; lists run over its readable images. answers, plain: what the
    task's judge packed of the merged and of the unmerged model's."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    batch: _Count
    samples: str
    images: list[_Count]
    unreadable: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    answers: list[Any] = []
    gmacs: list[_Gmacs] = []
    tokens: list[Annotated[list[_Count], Field(min_length=1)]] = []
    plain: list[Any] | None = None

    def fits(self, batch: Sequence[int], unmerged: bool, judge: Judge) -> bool:
        """Whether it speaks of all the images of `batch`, and each list of the readable ones."""
        count = len(self.images)
        lengths = {len(self.answers), len(self.gmacs), len(self.tokens)}
        lengths |= {len(self.plain or [])} if unmerged else set()
        return (
            count + len(self.unreadable) == len(batch)
            and set(self.images) <= set(batch)
            and len(set(self.images)) == count
            and len({len(row) for row in self.tokens}) <= 1
            and lengths == {count}
            and all(_unpacks(judge, part) for part in (self.answers, self.plain) if part)
        )


def _unpacks(judge: Judge, values: list[Any]) -> bool:
    try:
        judge.unpacked(values)
    except (ValueError, NonFiniteError):
        return False
    return True


def keep_what_holds(
    journal: Journal,
    samples: Samples,
    batches: Sequence[Sequence[int]],
    unmerged: bool,
    judge: Judge,
) -> None:
    """Forget the batches whose images have other names, labels or bytes now, and what is no batch.

    Reads the images of every counted batch once more, without decoding them.
    """
    for k, entry in list(journal.entries.items()):
        if not (0 <= k < len(batches) and _holds(entry, samples, batches[k], unmerged, judge)):
            del journal.entries[k]


def _holds(
    entry: Any, samples: Samples, batch: Sequence[int], unmerged: bool, judge: Judge
) -> bool:
    try:
        counted = Counted.model_validate(entry)
    except ValidationError:
        return False
    return counted.fits(batch, unmerged, judge) and counted.samples == samples.digest(batch)
