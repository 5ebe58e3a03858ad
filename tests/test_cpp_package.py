"""The C++ runtime as a package: what is exported, installed and found, and programs outside
the tree that use it. Run by tools/check_cpp.sh, which builds it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from atm_export import __version__ as VERSION
from atm_export.prove.golden_vectors import scene
from atm_export.runtime import load
from tests.runs import ended

ROOT = Path(__file__).parents[1]
HEADER = ROOT / "runtime/cpp/include/atm_runtime/atm_runtime.h"
CONSUMER = ROOT / "tests/consumer"
BUILD = os.environ.get("ATM_CPP_BUILD")
pytestmark = pytest.mark.skipif(BUILD is None, reason="run by tools/check_cpp.sh, which builds it")
LANGUAGES = ("C", "CXX")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
COMPILERS = {"C": ("cc", "-std=c99", "consumer.c"), "CXX": ("c++", "-std=c++17", "consumer.cpp")}

# The whole C++ API. What is missing breaks programs; what is more would have to be kept.
CPP_SYMBOLS = {
    "atm::Session::Session(string const&, atm::Options const&)",
    "atm::Session::about() const",
    "atm::Session::check_golden() const",
    "atm::Session::classes() const",
    "atm::Session::image_bytes() const",
    "atm::Session::label(size_t) const",
    "atm::Session::outputs() const",
    "atm::Session::policy() const",
    "atm::Session::predict(std::vector<atm::Picture> const&) const",
    "atm::Session::predict_all(std::vector<atm::Picture> const&) const",
    "atm::Session::prepare(atm::Picture const&) const",
    "atm::Session::ranks() const",
    "atm::Session::run(void const*, size_t) const",
    "atm::Session::run_all(void const*, size_t) const",
    "atm::Session::task() const",
    "atm::Session::top_k(float const*, size_t) const",
    "atm::Session::~Session()",
    "atm::decode_jpeg(unsigned char const*, size_t, size_t)",
    "atm::read_jpeg(string const&)",
    "typeinfo for atm::Error",
    "typeinfo name for atm::Error",
    "vtable for atm::Error",
}
C_SYMBOLS = {
    "atm_abi_version",
    "atm_about",
    "atm_check_golden",
    "atm_classes",
    "atm_close",
    "atm_image_bytes",
    "atm_label",
    "atm_last_error",
    "atm_open",
    "atm_output_axis",
    "atm_output_count",
    "atm_output_name",
    "atm_output_size",
    "atm_policy",
    "atm_predict_jpeg",
    "atm_predict_jpeg_output",
    "atm_predict_rgb",
    "atm_run",
    "atm_run_output",
    "atm_top_k",
    "atm_version",
}
# ABI version 1; a number is never given again.
STATUSES = """OK NOT_A_RUN MANIFEST RUN_FORMAT MISSING_FILE CHANGED_FILE UNPROVEN ENGINE_MISMATCH
ENGINE_VERSION GOLDEN_MISMATCH IMAGE ARGUMENT BACKEND NO_MEMORY OTHER NOT_FINITE"""


def bare_environment() -> dict[str, str]:
    """Nothing in it says where libraries and packages lie."""
    hints = ("LD_LIBRARY_PATH", "CMAKE_PREFIX_PATH", "PKG_CONFIG_PATH")
    return {name: value for name, value in os.environ.items() if name not in hints}


def command(*words: object, **environment: str) -> str:
    """A command's standard output; the test fails where the command does."""
    arguments = [*map(str, words)]
    bare = bare_environment() | environment
    return ended(subprocess.run(arguments, capture_output=True, text=True, env=bare))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An install prefix that was moved after the installation, to a name with a space."""
    folder = tmp_path_factory.mktemp("install")
    command("cmake", "--install", f"{BUILD}/plain", "--prefix", folder / "first")
    return (folder / "first").rename(folder / "moved away")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.jpg"
    scene((120, 90), 3).convert("RGB").save(path, quality=90)
    return path


def demangled(name: str) -> str:
    """A C++ name without what the compiler and the symbol's version add to it."""
    string = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >"
    name = name.partition("@")[0].replace(string, "string").replace("[abi:cxx11]", "")
    return re.sub(r", std::allocator<[\w:]+> >", ">", name).replace("unsigned long", "size_t")


def exported() -> Iterator[str]:
    library = Path(f"{BUILD}/plain/libatm_runtime.so")
    for line in command("nm", "-D", "-C", "--defined-only", library).splitlines():
        kind, name = line[17], line[19:]
        if kind != "A":  # the names of the versions themselves
            yield name


def test_exactly_the_documented_symbols_are_exported() -> None:
    names = [*exported()]
    assert {demangled(name) for name in names} == C_SYMBOLS | CPP_SYMBOLS
    declared = re.findall(r"^ATM_API [^;(]*?(atm_\w+)\(", HEADER.read_text(), re.MULTILINE)
    assert sorted(declared) == sorted(C_SYMBOLS)
    for name in names:
        node = "ATM_RUNTIME_1" if demangled(name) in C_SYMBOLS else f"ATM_RUNTIME_CPP_{VERSION}"
        assert name.endswith("@@" + node), name


def test_the_numbers_of_the_abi_stay() -> None:
    found = re.findall(r"ATM_(\w+) = (\d+)", HEADER.read_text())
    assert found == [(name, str(i)) for i, name in enumerate(STATUSES.split())]
    assert "libatm_runtime.so.1]" in command("readelf", "-d", f"{BUILD}/plain/libatm_runtime.so")


@pytest.mark.parametrize("kind", ["plain", "sanitized"])
def test_options_of_older_and_newer_callers_are_understood(uint8_folder: Path, kind: str) -> None:
    assert command(f"{BUILD}/{kind}/atm_abi", uint8_folder) == "0 wrong\n"


def test_one_version_is_told_everywhere(prefix: Path) -> None:
    told = re.search(r'^#define ATM_VERSION "(.*?)"', HEADER.read_text(), re.MULTILINE)
    assert told is not None and told[1] == VERSION
    assert pkg_config(prefix, "--modversion") == [VERSION]


def test_what_is_installed(prefix: Path) -> None:
    installed = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}
    package = "lib/cmake/atm_runtime/atm_runtime-"
    wanted = {
        "bin/atm_classify",
        "bin/atm_self_test",
        "include/atm_runtime/atm_runtime.h",
        "include/atm_runtime/atm_runtime.hpp",
        "lib/libatm_runtime.so",
        "lib/libatm_runtime.so.1",
        f"lib/libatm_runtime.so.1.{VERSION}",
        "lib/libonnxruntime.so.1",
        "lib/pkgconfig/atm_runtime.pc",
        "share/doc/atm_runtime/LICENSE",
        *(package + name for name in ("config.cmake", "config-version.cmake", "targets.cmake")),
    }
    assert wanted <= installed
    assert (prefix / "share/doc/atm_runtime/LICENSE").read_bytes() == (
        ROOT / "LICENSE"
    ).read_bytes()


def test_no_installed_file_names_a_folder_of_the_build(prefix: Path) -> None:
    """What is installed may be moved, and tells nothing of where it was made."""
    names = [str(name).encode() for name in (ROOT, BUILD, prefix.parent)]
    for path in prefix.rglob("*"):
        if path.is_file() and "onnxruntime" not in path.name:
            assert not [name for name in names if name in path.read_bytes()], path


def test_installed_tools_run(prefix: Path, uint8_folder: Path, picture: Path) -> None:
    command(prefix / "bin/atm_self_test", uint8_folder)
    assert "%" in command(prefix / "bin/atm_classify", "--run", uint8_folder, picture)


def test_without_a_bundle_the_libraries_are_found_where_they_were(
    tmp_path: Path, uint8_folder: Path
) -> None:
    command("cmake", "--install", f"{BUILD}/sanitized", "--prefix", tmp_path)
    assert not [*tmp_path.rglob("*onnxruntime.so*")]
    command(tmp_path / "bin/atm_self_test", uint8_folder)


def assert_answers(program: Path, run: Path, picture: Path) -> None:
    """The consumer's logits are Python's."""
    done = subprocess.run([program, run, picture], capture_output=True, env=bare_environment())
    ended(done)
    theirs = np.frombuffer(done.stdout, np.float32)
    ours = load(run, threads=1).predict([picture])[0]
    assert theirs.shape == ours.shape
    assert np.abs(theirs - ours).max() <= 1e-3 and theirs.argmax() == ours.argmax()


@pytest.mark.parametrize("tree", ["install", "build"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_find_package(
    tmp_path: Path, prefix: Path, demo_folder: Path, picture: Path, language: str, tree: str
) -> None:
    where = prefix if tree == "install" else f"{BUILD}/plain"
    options = (f"-DLANGUAGE={language}", f"-DCMAKE_PREFIX_PATH={where}")
    assert f"atm_runtime {VERSION}" in command("cmake", "-S", CONSUMER, "-B", tmp_path, *options)
    command("cmake", "--build", tmp_path)
    assert_answers(tmp_path / "consumer", demo_folder, picture)


@pytest.mark.parametrize("version", ["0.0.9", "0.2", "1.0"])
def test_find_package_refuses_other_versions(tmp_path: Path, prefix: Path, version: str) -> None:
    source = tmp_path / "CMakeLists.txt"
    source.write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(other C)\n"
        f"find_package(atm_runtime {version})\n"
        'message(STATUS "found: ${atm_runtime_FOUND} of ${atm_runtime_CONSIDERED_VERSIONS}")\n'
    )
    out = command("cmake", f"-DCMAKE_PREFIX_PATH={prefix}", "-S", tmp_path, "-B", tmp_path / "b")
    assert f"found: 0 of {VERSION}" in out


def pkg_config(prefix: Path, *options: str) -> list[str]:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    return shlex.split(
        command("pkg-config", *options, "atm_runtime", PKG_CONFIG_PATH=f"{prefix}/lib/pkgconfig")
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_pkg_config(
    tmp_path: Path, prefix: Path, demo_folder: Path, picture: Path, language: str
) -> None:
    """The headers warn of nothing, and a C program is linked by a C compiler."""
    compiler, standard, source = COMPILERS[language]
    flags = pkg_config(prefix, "--cflags", "--libs")
    path = f"-Wl,-rpath,{prefix}/lib"
    command(compiler, standard, *WARNINGS, CONSUMER / source, "-o", tmp_path / "out", *flags, path)
    assert_answers(tmp_path / "out", demo_folder, picture)
