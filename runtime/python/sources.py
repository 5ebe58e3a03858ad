"""Where the runtime's source lies, which modules it is made of, and their text under its own name.

The one source is `atm_export`; nothing of it is kept here. A module belongs to the runtime if
`atm_export.runtime` imports it when it is loaded, directly or through another module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
THEIRS, OURS = "atm_export", "atm_runtime"
COMMAND = re.compile(rf"-m {THEIRS}\.runtime\b")
NAME = re.compile(rf"\b{THEIRS}\b")


def tree() -> Path:
    """The folder that holds `atm_export`: the repository, or an unpacked source distribution."""
    for folder in (HERE, HERE.parents[1]):
        if (folder / THEIRS / "runtime" / "__init__.py").is_file():
            return folder
    raise FileNotFoundError(
        f"{HERE} has no {THEIRS} beside it: build atm-runtime in its repository, or from its sdist"
    )


def version() -> str:
    """The version that both distributions have."""
    text = (tree() / THEIRS / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.M)
    if found is None:
        raise ValueError(f"{THEIRS}/__init__.py states no __version__")
    return found[1]


def modules() -> tuple[Path, ...]:
    """Files of the runtime, relative to `tree()`, in order."""
    top = tree()
    todo = list((top / THEIRS / "runtime").glob("*.py"))
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo += [each for each in _imported(file, top) if each not in seen]
    seen.discard(top / THEIRS / "__init__.py")
    return tuple(sorted(file.relative_to(top) for file in seen))


def renamed(text: str) -> str:
    """A module's text with the package under its own name."""
    return NAME.sub(OURS, COMMAND.sub(f"-m {OURS}", text))


def _imported(file: Path, top: Path) -> Iterator[Path]:
    """Files of modules that `file` imports when it is loaded, and of the packages around them."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith(THEIRS):
            names = [f"{statement.module}.{alias.name}" for alias in statement.names]
            for name in (str(statement.module), *names):
                yield from _files(top.joinpath(*name.split(".")), top)


def _files(path: Path, top: Path) -> Iterator[Path]:
    """The module at `path`, if there is one, and the packages that it lies in."""
    for module in (path.with_suffix(".py"), path / "__init__.py"):
        if module.is_file():
            yield module
            folders = module.relative_to(top).parents
            yield from (top / folder / "__init__.py" for folder in list(folders)[:-1])
