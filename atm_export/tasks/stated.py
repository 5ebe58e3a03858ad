"""What a finished run answers, as its manifest states it: enough for runtimes without the task.

A manifest without a word about its task is a classifier's. Nothing here imports more than NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atm_export.errors import ConfigError
from atm_export.shapes import Misfit, fields, items, maybe, number, text
from atm_export.tasks.agreement import agreements
from atm_export.tasks.base import Output
from atm_export.tasks.classify import Classify
from atm_export.tasks.embed import Embed

MOST_OUTPUTS = 16


@dataclass(frozen=True)
class Statement:
    """outputs: the main one first. ranks: the one whose rows rank classes, or None."""

    task: str
    ranks: str | None
    outputs: tuple[Output, ...]

    @property
    def main(self) -> Output:
        return self.outputs[0]

    @property
    def classes(self) -> int:
        """How many classes are ranked; 0: none are."""
        found = [output.shape[1] for output in self.outputs if output.name == self.ranks]
        return int(found[0]) if found else 0

    def require_ranks(self, what: str, where: object) -> str:
        """The output that ranks classes; ConfigError where `what` needs one and none is."""
        if self.ranks is None:
            raise ConfigError(
                f"{what} needs an output that ranks classes; {where} answers the task "
                f"'{self.task}', which gives {', '.join(o.name for o in self.outputs)}"
            )
        return self.ranks

    def require_embedding(self, where: object) -> str:
        """The output that is an embedding; ConfigError where the task gives none."""
        if self.task != Embed.name:
            raise ConfigError(
                f"embed needs a run of --task embed; {where} answers the task '{self.task}'"
            )
        return self.main.name


def task_facts(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a manifest or a report says of its task."""
    found: Mapping[str, Any] = document.get("task", CLASSIFIER)
    return found


def stated(manifest: Mapping[str, Any]) -> Statement:
    """What a manifest says that its run answers."""
    facts, known = task_facts(manifest), manifest["interface"]["outputs"]
    outputs = tuple(
        Output(each["name"], tuple(known[each["name"]]["shape"]), each["agreement"])
        for each in facts["outputs"]
    )
    return Statement(facts["name"], facts["ranks"], outputs)


def check_task(facts: Any, at: str) -> None:
    """Misfit unless this is what `Task.facts` gives, of agreements that are known here."""
    output = fields({"name": text, "agreement": _agreement})
    fields({"name": text, "ranks": maybe(text), "outputs": items(output, 1, MOST_OUTPUTS)})(
        facts, at
    )


def _agreement(value: Any, at: str) -> None:
    if not isinstance(value, str) or value not in agreements:
        raise Misfit(f"{at} must be one of {', '.join(agreements)}, not {str(value)[:60]!r}")


def check_stated(manifest: Mapping[str, Any]) -> None:
    """Misfit unless task, interface, labels and golden tolerances of a manifest fit together."""
    facts, known = task_facts(manifest), manifest["interface"]["outputs"]
    for each in facts["outputs"]:
        if each["name"] not in known:
            raise Misfit(f"interface.outputs.{each['name'][:80]} is missing")
        if known[each["name"]]["dtype"] != Output.dtype:
            raise Misfit(f"interface.outputs.{each['name'][:80]} must be {Output.dtype}")
    try:
        statement = stated(manifest)
    except ValueError as error:
        raise Misfit(f"interface.outputs: {error}") from error
    if len({output.name for output in statement.outputs}) < len(statement.outputs):
        raise Misfit("task.outputs names one twice")
    ranking = [output.name for output in statement.outputs if output.rule.ranks]
    if statement.ranks is not None and statement.ranks not in ranking:
        raise Misfit("task.ranks must be an output that ranks classes")
    _check_labels(manifest["labels"], statement)
    golden = manifest["golden"]
    for output in statement.outputs if golden is not None else ():
        wanted = {output.name: number(0), f"picture_{output.name}": number(0)}
        fields(wanted)(golden["tolerance"], "golden.tolerance")


def _check_labels(labels: Any, statement: Statement) -> None:
    if labels is not None and len(labels) != statement.classes:
        raise Misfit(f"labels names {len(labels)} classes, the run ranks {statement.classes}")


_classify = Classify()
CLASSIFIER: Mapping[str, Any] = {
    "name": _classify.name,
    "ranks": _classify.ranks,
    "outputs": [{"name": _classify.ranks, "agreement": "top1"}],
}
