"""Plugins: found by entry point, loaded where a name asks for them, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import atm_export
from tests.runs import ended

ROOT = Path(atm_export.__file__).parent.parent
METHOD = """
from typing import Literal
from atm_export.methods import methods
from atm_export.methods.base import Method, MethodSettings
from atm_export.methods.plan import MergePlan

class Idle(MethodSettings):
    name: Literal["idle"] = "idle"
    depth: int = 0

class Nothing(Method):
    name, settings = "idle", Idle
    def plan(self, settings, shape): return MergePlan.unmerged(shape.depth)
    def summary(self, settings, plan, origin): return "idle"
    def label(self, settings): return "idle"

print("loaded")
methods.add("idle", Nothing())
"""
TASK = """
from atm_export.tasks import tasks
from atm_export.tasks.classify import Classify

def register():
    print("loaded")
    tasks.add("other", Classify())
"""


def installed(folder: Path, text: str, value: str) -> dict[str, str]:
    """The environment of a process in which a module `extra` is there as a plugin."""
    (folder / "extra.py").write_text(text)
    facts = folder / "extra-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[atm_export.plugins]\nextra = {value}\n")
    path = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "ATM_EXPORT_CONFIGS": str(folder)}


def python(environment: dict[str, str], code: str) -> str:
    command = [sys.executable, "-c", code]
    return ended(subprocess.run(command, env=environment, capture_output=True, text=True))


def test_a_module_registers_a_method_when_its_name_is_asked_for(tmp_path: Path) -> None:
    environment = installed(tmp_path, METHOD, "extra")
    code = (
        "import sys\n"
        "from atm_export.resolving import Choice, resolve\n"
        "resolve(Choice(model='demo'))\n"
        "assert 'extra' not in sys.modules\n"
        "choice = Choice(model='demo', method='idle', settings=('depth=3',))\n"
        "for _ in range(2): print(resolve(choice).method.depth)\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert python(environment, code).split() == ["loaded", "3", "3"]


def test_what_a_service_embeds_finds_tasks_without_the_exporter(tmp_path: Path) -> None:
    environment = installed(tmp_path, TASK, "extra:register")
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'onnx', 'pydantic'): sys.modules[name] = None\n"
        "import atm_export.runtime\n"
        "from atm_export.tasks import tasks\n"
        "assert 'extra' not in sys.modules\n"
        "print(tasks['other'].name, list(tasks))\n"
    )
    found = "classify ['classify', 'dense', 'embed', 'other']"
    assert python(environment, code).splitlines() == ["loaded", found]


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["list"], ["list", "demo"]])
def test_a_broken_plugin_is_not_in_the_way(arguments: list[str], tmp_path: Path) -> None:
    environment = installed(tmp_path, "1 / 0", "extra")
    code = (
        "import sys\n"
        "from atm_export.cli import main\n"
        f"code = main({arguments!r})\n"
        "assert not {'torch', 'timm', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    python(environment, code)


def test_a_broken_plugin_is_named_where_a_name_asks_for_it(tmp_path: Path) -> None:
    environment = installed(tmp_path, "1 / 0", "extra")
    command = [sys.executable, "-m", "atm_export.cli", "demo", "--method", "idle"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    ended(done, 2)
    assert done.stderr.strip() == (
        "atm-export: the plugin extra (extra) does not load: ZeroDivisionError: division by zero; "
        "mend or uninstall it"
    )
