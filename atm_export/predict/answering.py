"""What a row says of a picture: its embedding, or its likeliest classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.bounds import MAX_TOP_K, whole
from atm_export.errors import ConfigError
from atm_export.runs.reading import Run
from atm_export.tasks.classify import likeliest
from atm_export.tasks.embed import Embed

USUAL_TOP_K = 5
EMBEDDING = "embedding"
CLASSES, PROBABILITIES, LABELS = "top_classes", "top_probabilities", "top_labels"


@dataclass(frozen=True)
class Answering:
    """What is kept of the output `output` [batch, length]: all of it (top_k None: an embedding), or
    the `top_k` best classes, by their `labels` too where they have any."""

    output: str
    length: int
    top_k: int | None = None
    labels: tuple[str, ...] | None = None

    def columns(self, rows: NDArray[np.float32]) -> dict[str, Any]:
        """Values of each column for rows [n, length] of the output."""
        if self.top_k is None:
            return {EMBEDDING: np.asarray(rows, dtype=np.float32)}
        best = likeliest(rows, self.top_k)
        found: dict[str, Any] = {
            CLASSES: [[index for index, _ in row] for row in best],
            PROBABILITIES: [[share for _, share in row] for row in best],
        }
        if self.labels is not None:
            found[LABELS] = [[self.labels[index] for index, _ in row] for row in best]
        return found


def answering_of(run: Run, top_k: int | None) -> Answering:
    """What is kept of a run's answers; ConfigError for a task that neither embeds nor ranks
    classes, and for a `top_k` (None: 5 of a classifier) that means nothing."""
    answers, manifest = run.manifest.answers, run.manifest
    if answers.task == Embed.name:
        if top_k is not None:
            raise ConfigError(f"--top-k is of classes; {run.folder} answers with embeddings")
        return Answering(answers.main.name, int(answers.main.shape[1]))
    ranks = answers.require_ranks("predict of another task than embed", run.folder)
    count = whole(USUAL_TOP_K if top_k is None else top_k, "--top-k", 1, MAX_TOP_K)
    return Answering(ranks, answers.classes, min(count, answers.classes), manifest.labels)
