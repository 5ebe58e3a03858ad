"""The tasks, by name: each says in one file what is answered, and when two answers are equal."""

from __future__ import annotations

from atm_export.errors import ConfigError
from atm_export.registry import Registry
from atm_export.tasks.base import Task
from atm_export.tasks.classify import Classify
from atm_export.tasks.dense import Dense
from atm_export.tasks.embed import Embed
from atm_export.tasks.judge import Judge

tasks: Registry[Task] = Registry("task")
tasks.add(Classify.name, Classify())
tasks.add(Embed.name, Embed())
tasks.add(Dense.name, Dense())


def judge_of(task: str, what: str) -> Judge:
    """How answers of a task are judged; ConfigError where `what` needs it and the task says
    nothing of it."""
    found = tasks[task].judge
    if found is None:
        raise ConfigError(f"{what} cannot judge the task '{task}': it states no judge")
    return found
