"""Data flows one way, and so do imports; optional packages load late."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import atm_export

PACKAGE = Path(atm_export.__file__).parent
ORDER = (
    (
        *("errors", "bounds", "comparison", "strict_json", "shapes", "plugins", "settings"),
        "cluster",
    ),
    (
        "inputs",
        "imagefiles",
        "pictures",
        "preprocess",
        "registry",
    ),
    ("tasks",),
    ("loose_files", "marks", "place", "runs"),
    ("demo", "photos"),
    ("methods",),
    ("numbers", "choice", "config", "model_configs"),
    ("uses",),
    ("model",),
    ("resolving",),
    ("rewrite",),
    ("graph",),
    ("backends",),
    ("runtime",),
    ("triton", "triton_graphs", "web"),
    ("subject",),
    ("prove",),
    ("measure",),
    ("report",),
    ("engines", "low_precision"),
    ("reuse", "translation"),
    ("pipeline",),
    ("compare", "reproduce", "predict"),
    ("commands",),
    ("cli", "pytest_plugin"),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def imports_of(path: Path) -> set[str]:
    """Parts of atm_export that a module imports, late imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "atm_export" and len(parts) > 1 and parts[1] in LEVEL:
                found.add(parts[1])
    return found


def test_imports_point_one_way() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if part == "__init__":
            continue
        assert part in LEVEL, f"{part} has no place in the order"
        wrong += [
            f"{path.relative_to(PACKAGE)} imports {other}"
            for other in imports_of(path)
            if other != part and LEVEL[other] > LEVEL[part]
        ]
    assert not wrong


def modules() -> dict[str, Path]:
    """Every module of the package with its file."""
    return {
        ".".join(("atm_export", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in PACKAGE.rglob("*.py")
    }


def imported_modules(path: Path, known: Collection[str]) -> set[str]:
    """The `known` modules that a file imports, late imports and those for types included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(known)


def test_no_circle_of_imports() -> None:
    known = modules()
    edges = {name: imported_modules(path, known) - {name} for name, path in known.items()}
    TopologicalSorter(edges).prepare()  # CycleError names the circle


def test_no_edge_is_hidden() -> None:
    """Modules of the package are imported by name, but for the public names of the package."""
    hidden = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "import_module" in path.read_text(encoding="utf-8")
    ]
    assert sorted(hidden) == ["__init__.py", "backends/tensorrt/api.py"]  # TensorRT's own modules


def test_every_module_imports_without_tensorrt() -> None:
    names = [
        ".".join(("atm_export", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    code = (
        "import sys\n"
        "for name in ('tensorrt', 'tensorrt_rtx'): sys.modules[name] = None\n"
        f"for name in {names!r}: __import__(name.removesuffix('.__init__'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_package_itself_imports_neither_torch_nor_onnxruntime() -> None:
    code = (
        "import sys, atm_export, atm_export.cli\n"
        "assert not {'torch', 'timm', 'onnxruntime'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_public_names_work_together_in_a_new_process() -> None:
    """In any order: no name is that of a module too, which would take its place once loaded."""
    code = (
        "import atm_export.pipeline, atm_export.resolving\n"
        "from atm_export import Choice, export, resolve\n"
        "assert resolve(Choice(model='demo')).model.name == 'demo' and callable(export)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_public_names_exist() -> None:
    assert {"Choice", "Outcome", "RunConfig", "export", "resolve"} <= set(atm_export.__all__)
    assert {"EngineSettings", "TensorRTRunner", "engine_from_onnx"} <= set(atm_export.__all__)
    for name in atm_export.__all__:
        assert getattr(atm_export, name) is not None
