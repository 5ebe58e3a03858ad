"""The tasks, by name: each says in one file what is answered, and when two answers are equal."""

from __future__ import annotations

from atm_export.registry import Registry
from atm_export.tasks.base import Task
from atm_export.tasks.classify import Classify

tasks: Registry[Task] = Registry("task")
tasks.add(Classify.name, Classify())
