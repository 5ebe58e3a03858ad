"""A pytest plugin that proves run folders again, in the user's own CI.

    pytest --atm-run build/deit_s                 adds the proof of that run to the tests
    pytest --atm-run build/deit_s -m atm_parity   nothing but the proof

    @pytest.mark.atm_parity("build/deit_s")       proves that run before the test's own body
    def test_mine(atm_run): ...                   the loaded session (atm_export.runtime.Session)

Every byte and every golden vector is checked; with PyTorch installed and the weights at hand, also
the eager reference on new images. Nothing here is random: the same run gives the same outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from atm_export.runtime.prove import Verified
    from atm_export.runtime.session import Session

MARK = "atm_parity"
_verified = pytest.StashKey[dict[Path, "Verified"]]()
_PARTS = ("manifest", "golden", "eager")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("atm-export")
    group.addoption(
        "--atm-run",
        action="append",
        default=[],
        metavar="RUN",
        help="prove this run folder of atm-export again (may be given several times)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{MARK}(run): proves the run folder (or those of --atm-run) before the test"
    )
    config.stash[_verified] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """The proof of every --atm-run goes in front of the other tests."""
    found: list[pytest.Item] = []
    for name in dict.fromkeys(config.getoption("--atm-run")):
        run = RunProof.from_parent(session, name=f"atm-run[{name}]", nodeid=f"atm-run[{name}]")
        run.folder = Path(name)
        found.extend(run.collect())
    items[:0] = found


class RunProof(pytest.Collector):
    """One run folder as a collection of proofs."""

    folder: Path

    def collect(self) -> Iterator[pytest.Item]:
        for part in _PARTS:
            item = ProofItem.from_parent(self, name=part)
            item.add_marker(MARK)
            item.folder = self.folder
            yield item


class ProofItem(pytest.Item):
    """One proof: the manifest's bytes, the golden vectors, or the eager reference."""

    folder: Path

    def runtest(self) -> None:
        if self.name == "manifest":
            from atm_export.runs.reading import open_run

            open_run(self.folder)
        elif self.name == "golden":
            verified(self.config, self.folder).require()
        else:
            _prove_eager(self.folder)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from atm_export.errors import AtmExportError

        if isinstance(excinfo.value, AtmExportError):
            return f"{type(excinfo.value).__name__}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.folder, None, f"{self.name} of {self.folder}"


def verified(config: pytest.Config, folder: Path) -> Verified:
    """The verification of a run folder, made once a session."""
    from atm_export.runtime.prove import verify

    known = config.stash[_verified]
    if folder not in known:
        known[folder] = verify(folder)
    return known[folder]


def _prove_eager(folder: Path) -> None:
    try:
        from atm_export.prove.finished import NotHere, prove_again
    except ImportError as error:
        pytest.skip(f"the eager reference needs the exporter's packages ({error.name} is missing)")
    try:
        prove_again(folder)
    except NotHere as error:
        pytest.skip(str(error))


def _folders(config: pytest.Config, mark: pytest.Mark | None) -> list[Path]:
    named = mark.args if mark is not None and mark.args else config.getoption("--atm-run")
    return [Path(name) for name in named]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A marked test proves its runs first."""
    mark = item.get_closest_marker(MARK)
    if mark is not None and not isinstance(item, ProofItem):
        folders = _folders(item.config, mark)
        if not folders:
            pytest.skip("name a run: @pytest.mark.atm_parity(RUN) or --atm-run RUN")
        for folder in folders:
            verified(item.config, folder).require()
            _prove_or_pass(folder)
    return (yield)


def _prove_or_pass(folder: Path) -> None:
    """The golden vectors hold; the reference is asked too where it can be."""
    try:
        _prove_eager(folder)
    except pytest.skip.Exception:
        return


@pytest.fixture
def atm_run(request: pytest.FixtureRequest) -> Session:
    """The session of the marked run, or of the only --atm-run."""
    folders = _folders(request.config, request.node.get_closest_marker(MARK))
    if not folders:
        pytest.skip("name a run: @pytest.mark.atm_parity(RUN) or --atm-run RUN")
    if len(folders) > 1:
        pytest.fail("several runs: name one by @pytest.mark.atm_parity(RUN)")
    return verified(request.config, folders[0]).session
