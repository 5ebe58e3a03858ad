"""`verify`, for the command line, the pytest plugin and the slim install alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atm_export.comparison import Comparison
from atm_export.errors import ParityError
from atm_export.runtime.check import check_golden
from atm_export.runtime.session import Session, load


@dataclass(frozen=True)
class Verified:
    """A run whose bytes hold, and how its golden vectors compare on this machine."""

    session: Session
    comparisons: tuple[Comparison, ...]

    @property
    def lines(self) -> list[str]:
        """What was checked, one line each."""
        run = self.session.run_folder
        head = f"{len(run.manifest.files)} files and the manifest's seal hold"
        return [head, f"runs on {self.session.about}", *(each.line for each in self.comparisons)]

    def require(self) -> None:
        """ParityError with every comparison that failed."""
        bad = [each.line for each in self.comparisons if not each.ok]
        if bad:
            raise ParityError(f"{self.session.run_folder.folder}: {'; '.join(bad)}")


def verify(
    folder: Path | str,
    *,
    backend: str | None = None,
    providers: Sequence[str] | None = None,
    engine: str | None = None,
    threads: int = 0,
) -> Verified:
    """Check every byte against the manifest and every golden vector against PyTorch's numbers.

    Raises RunFolderError for the bytes, ConfigError for threads and providers; `require` of what it
    returns, ParityError for the numbers.
    """
    session = load(
        folder,
        backend=backend,
        providers=providers,
        engine=engine,
        threads=threads,
        warm_up=False,
    )
    return Verified(session, tuple(check_golden(session)))
