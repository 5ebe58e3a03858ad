"""How far images are: a bar, or where nobody watches a line at every tenth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Images per second of this session."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "")


class Shown:
    """Progress of what is being done (`doing`: evaluating)."""

    def __init__(self, console: Console, bar: Progress, doing: str) -> None:
        self.console, self.bar, self.doing = console, bar, doing
        self.task = bar.add_task("starting", total=None)
        self.last = -1

    def say(self, text: str) -> None:
        self.bar.update(self.task, description=text)

    def progress(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total, description=self.doing)
        tenth = 10 * done // max(total, 1)
        if not self.console.is_terminal and tenth != self.last:
            print(f"{self.doing}: {done} of {total} images", flush=True)
        self.last = tenth


@contextmanager
def images_shown(doing: str) -> Iterator[Shown]:
    """Progress on standard error while the context lasts."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        yield Shown(console, bar, doing)
