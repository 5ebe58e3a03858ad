"""Puts the modules of `atm_export` that the runtime is made of into its distributions."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))
import sources


class RuntimeSources(BuildHookInterface):  # type: ignore[type-arg]
    """A wheel has them under the package's own name; a source distribution as they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        top, included = sources.tree(), build_data["force_include"]
        typed = Path(sources.THEIRS, "py.typed")
        included[str(top / "LICENSE")] = (
            "LICENSE" if self.target_name == "sdist" else f"{sources.OURS}/LICENSE"
        )
        if self.target_name == "sdist":
            version_file = Path(sources.THEIRS, "__init__.py")
            for file in (version_file, typed, *sources.modules()):
                included[str(top / file)] = file.as_posix()
            return
        self._renamed = tempfile.TemporaryDirectory()
        for file in (typed, *sources.modules()):
            copy = Path(self._renamed.name, "_".join(file.parts))
            copy.write_text(sources.renamed((top / file).read_text(encoding="utf-8")), "utf-8")
            included[str(copy)] = sources.renamed(file.as_posix())

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            self._renamed.cleanup()
