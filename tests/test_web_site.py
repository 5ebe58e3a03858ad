"""`atm-export web`: what it writes, what it replaces, and what it refuses in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from atm_export.cli import main
from atm_export.commands import WEB
from atm_export.runs.reading import MANIFEST
from atm_export.runs.seal import sealed
from atm_export.web import site as web_site
from atm_export.web.package import FILES, PACKAGE, VARIABLE, pinned_version, web_folder
from atm_export.web.site import OWN, write_site
from tests.run_folders import tiny_run
from tests.runs import run_command
from tests.test_verify import reseal

ROOT = Path(__file__).resolve().parents[1]
LOADED = re.compile(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.[a-z]{2,}/?", re.A)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that form, which runs nothing."""
    folder = tmp_path / "node_modules" / PACKAGE
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"version": pinned_version()}))
    for name in FILES:
        (folder / "dist" / name).write_text(name)
    monkeypatch.delenv(VARIABLE, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line that the command says before it ends with `code`."""
    capsys.readouterr()
    assert main(["web", *map(str, arguments)]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_the_folder_holds_all_that_the_page_loads(
    finished_run: Path, demo_folder: Path, package: Path
) -> None:
    said = run_command("web", finished_run, demo_folder, "--out", "site")
    assert "has no trace outputs" in said and "python -m http.server" in said
    written = files_of(Path("site"))
    runs = {f"runs/{n}/{name}" for n in (1, 2) for name in web_files()}
    own = {*OWN, "site.json", ".atm-export.json", *(f"ort/{name}" for name in FILES)}
    assert set(written) == runs | own
    assert written["runs/2/model.onnx"] == (demo_folder / "model.onnx").read_bytes()
    assert written["runs/1/manifest.json"] == (finished_run / MANIFEST).read_bytes()
    told = json.loads(written["site.json"])
    assert told["model"] == "demo" and told["onnxruntime_web"] == pinned_version()
    assert [run["folder"] for run in told["runs"]] == ["runs/1/", "runs/2/"]
    assert 0 < told["runs"][0]["gflops"] < told["runs"][0]["unmerged_gflops"]
    run_command("web", finished_run, demo_folder, "--out", "site")
    assert files_of(Path("site")) == written, "the same runs give the same bytes"
    assert not [path for path in Path().iterdir() if path.name != "site"]


def web_files() -> list[str]:
    return ["manifest.json", "model.onnx", "golden.safetensors"]


def test_the_pages_own_files_are_these_and_name_no_host() -> None:
    there = {path.name for path in web_folder().iterdir()} - {"package.json", "node_modules"}
    assert there == set(OWN)
    for name in OWN:
        text = (web_folder() / name).read_text(encoding="utf-8")
        assert not LOADED.search(text), name
        for other in re.findall(r"""(?:from|import\(|src=|href=|URL\()\s*"(?:\./)?([^"]+)""", text):
            assert other in OWN or other.startswith("ort/"), (name, other)


def test_the_version_is_pinned_in_one_place() -> None:
    pinned = pinned_version()
    assert re.fullmatch(r"\d+\.\d+\.\d+", pinned)
    for text in (
        WEB,
        (ROOT / "docs" / "browser.md").read_text(encoding="utf-8"),
        (ROOT / "constraints.txt").read_text(encoding="utf-8"),
    ):
        assert set(re.findall(r"onnxruntime-web[@= ]+([\d.]+\d)", text)) == {pinned}


def test_weights_beside_and_int8_come_along(
    int8_folder: Path, package: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", "class token", external_data="always")
    site = write_site([run], tmp_path / "site")
    assert (site.folder / "runs/1/model.onnx.data").is_file()
    low = write_site([int8_folder], tmp_path / "low", precision="int8")
    files = files_of(low.folder / "runs" / "1")
    assert set(files) == {MANIFEST, "model.int8.onnxruntime.onnx", "golden.safetensors"}
    assert low.bytes == sum(map(len, files_of(low.folder).values())) - listed(low.folder)


def listed(folder: Path) -> int:
    return (folder / ".atm-export.json").stat().st_size


def test_where_the_package_lies(
    demo_folder: Path,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_command("web", demo_folder, "--out", "site")  # in a folder above
    other = Path(shutil.copytree(package, tmp_path / "other"))
    (other / "package.json").write_text('{"version": "1.2.3"}')
    shutil.rmtree(package)
    how = f"npm install {PACKAGE}@{pinned_version()}"
    line = refused(capsys, 8, demo_folder, "--out", "site")
    assert how in line and f"--{PACKAGE} DIR" in line
    said = run_command("web", demo_folder, "--out", "site", f"--{PACKAGE}", other)
    assert f"{PACKAGE} 1.2.3 is taken; this release was tested with {pinned_version()}" in said
    monkeypatch.setenv(VARIABLE, str(other))
    run_command("web", demo_folder, "--out", "site")
    (other / "dist" / FILES[2]).unlink()
    line = refused(capsys, 8, demo_folder, "--out", "site")
    assert f"it has no dist/{FILES[2]}" in line and how in line
    assert json.loads(Path("site/site.json").read_text())["onnxruntime_web"] == "1.2.3"


def test_runs_that_no_page_can_show(
    demo_folder: Path,
    uint8_folder: Path,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "name the runs" in refused(capsys, 2, "--out", "site")
    assert "is no run folder" in refused(capsys, 10, tmp_path, "--out", "site")
    line = refused(capsys, 2, demo_folder, uint8_folder, "--out", "site")
    assert "one page shows one model" in line
    line = refused(capsys, 2, demo_folder, "--precision", "int8", "--out", "site")
    assert "has no graph in int8" in line and "--backend onnxruntime --precision int8" in line
    run = Path(shutil.copytree(demo_folder, tmp_path / "openvino"))
    reseal(run, proven_on={"openvino": "OpenVINO 2026"})
    line = refused(capsys, 2, run, "--out", "site")
    assert "was proven on openvino alone, and browsers run ONNX Runtime" in line
    run = Path(shutil.copytree(demo_folder, tmp_path / "changed"))
    (run / "model.onnx").write_bytes(b"")
    assert "was changed after the export" in refused(capsys, 10, run, "--out", "site")
    monkeypatch.setattr(web_site, "MOST_BYTES", 1000)
    assert "a browser holds" in refused(capsys, 2, demo_folder, "--out", "site")
    assert not list(Path().iterdir()), "nothing is left behind"


def test_other_tasks_and_channels_are_refused(
    demo_folder: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads((demo_folder / MANIFEST).read_text())
    run = Path(shutil.copytree(demo_folder, tmp_path / "task"))
    task = {**told["task"], "name": "embed", "ranks": None}
    task["outputs"] = [{"name": "logits", "agreement": "cosine"}]
    reseal(run, task=task, labels=None)
    assert "answers the task 'embed'" in refused(capsys, 2, run, "--out", "site")
    run = Path(shutil.copytree(demo_folder, tmp_path / "channels"))
    told["preprocessing"] |= {"mean": [0.5] * 5, "std": [0.5] * 5}
    told["interface"]["input"]["shape"][1] = 5
    (run / MANIFEST).write_bytes(sealed(told))
    assert "takes 5 channels" in refused(capsys, 2, run, "--out", "site")


def test_nothing_of_the_users_is_lost(
    demo_folder: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(demo_folder, tmp_path / "run"))
    before = files_of(run)
    for out in (run, run / "model.onnx", "/", tmp_path, "..", "."):
        refused(capsys, 7, run, "--out", out)
    refused(capsys, 7, run, "--out", "")
    assert files_of(run) == before
    Path("dangling").symlink_to("nowhere")
    assert "leads nowhere" in refused(capsys, 7, run, "--out", "dangling")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert "no mark of atm-export" in refused(capsys, 7, run, "--out", "mine")
    Path("dangling").unlink()
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    run_command("web", run, "--out", "link")
    assert Path("link").is_symlink() and Path("empty/index.html").is_file()
    Path("empty/page.css").write_text("mine")
    assert "page.css carries no mark" in refused(capsys, 7, run, "--out", "empty")
    Path("empty/page.css").write_bytes((web_folder() / "page.css").read_bytes())
    Path("empty/more.html").write_text("mine")
    assert "more.html carries no mark" in refused(capsys, 7, run, "--out", "link")
    assert Path("mine/notes.txt").read_text() == "mine"


def test_odd_names_of_folders(demo_folder: Path, package: Path) -> None:
    names = ["two words", "-dash", "ümlaut", "a\nline", "semi;colon"]
    for name in names:
        shutil.copytree(demo_folder, Path("runs") / name)
        site = write_site([Path("runs") / name], Path("sites") / name)
        assert (site.folder / "runs/1/model.onnx").is_file()
    assert sorted(path.name for path in Path("sites").iterdir()) == sorted(names)
