"""Write down the Python API of TensorRT versions from their binding wheels, without the libraries.

    pip download --no-deps tensorrt_cu12_bindings==10.3.0 -d wheels
    python tools/trt_surface.py wheels/*.whl
    python tools/trt_surface.py tensorrt_rtx

The bindings register every class, method and flag when they are imported, before they call into
libnvinfer; so they are imported over empty stand-ins (needs gcc and nm). The result,
build/trt_surface/NAME-VERSION.json (tests/trt_surface holds copies), holds {class: {member:
parameter names, or null for a value}}: what the tests hold `atm_export.backends.tensorrt.api`
against.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from atm_export.loose_files import put_files

OUT = Path("build") / "trt_surface"
# What the project uses, and what it must know to be gone.
CLASSES = (
    "Builder", "BuilderFlag", "ComputeCapability", "DataType", "EngineCapability",
    "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine", "IExecutionContext",
    "IHostMemory", "ILayer", "ILogger", "INetworkDefinition", "IOptimizationProfile",
    "IOutputAllocator", "IProgressMonitor", "ITensor", "ITimingCache", "Logger", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "OnnxParser", "OnnxParserFlag", "ParserError",
    "PreviewFeature", "ProfilingVerbosity", "Runtime", "TacticSource", "TensorFormat",
    "TensorIOMode", "ExecutionContextAllocationStrategy", "EngineInspector", "EngineStat",
    "LayerInformationFormat",
)  # fmt: skip
DUMP = """
import importlib, inspect, json, re, sys
trt = importlib.import_module(sys.argv[1])
surface = {}
for name in sys.argv[2].split(","):
    kind = getattr(trt, name, None)
    if kind is None:
        continue
    members = {}
    for member in sorted(vars(kind)):
        if member.startswith("_") and member != "__init__":
            continue
        value = inspect.getattr_static(kind, member)
        text = getattr(getattr(kind, member), "__doc__", None) or ""
        found = re.search(r"^" + re.escape(member) + r"\\((.*)\\) -> ", text, re.M)
        method = callable(getattr(kind, member, None)) and not isinstance(value, property)
        if method and not found:
            members[member] = "overloaded"
        elif method:
            inside = found.group(1)
            while "[" in inside:
                inside = re.sub(r"\\[[^\\[\\]]*\\]", "", inside)
            names = re.findall(r"(\\w+): ", inside)
            members[member] = names[1:] if names[:1] == ["self"] else names
        else:
            members[member] = None
    surface[name] = members
print(json.dumps({"version": trt.__version__, "functions": sorted(n for n in dir(trt) if n[0] != "_"
      and callable(getattr(trt, n)) and not inspect.isclass(getattr(trt, n))), "classes": surface}))
"""


def stand_in(folder: Path, library: Path) -> None:
    """Empty shared libraries for everything of NVIDIA's that `library` needs."""
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True)
    names = [
        line.split("[")[1].rstrip("]") for line in needed.stdout.splitlines() if "[libnv" in line
    ]
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True
    )
    wanted = [line.split()[-1] for line in listed.stdout.splitlines()]
    ours = [name for name in wanted if "@" not in name and not name.startswith(("_", "Py", "pthr"))]
    source = folder / "empty.c"
    source.write_text("".join(f"void *{n}(void) {{ return 0; }}\n" for n in ours if "dl" not in n))
    for name in names:
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source)]
        subprocess.run([*command, "-o", str(folder / name)], check=True)


def surface(given: str) -> dict[str, object]:
    """The API of an installed module, or of a wheel."""
    with tempfile.TemporaryDirectory() as work:
        folder, environment, module = Path(work), {}, given
        if given.endswith(".whl"):
            zipfile.ZipFile(given).extractall(folder)
            library = next(folder.glob("*/*.so"))
            stand_in(folder, library)
            environment = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
            module = library.parent.name
        done = subprocess.run(
            [sys.executable, "-c", DUMP, module, ",".join(CLASSES)],
            env={"PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{given} cannot be imported: {done.stderr.strip().splitlines()[-1]}")
        return dict(json.loads(done.stdout))


def main() -> None:
    for given in sys.argv[1:]:
        found = surface(given)
        name = "tensorrt_rtx" if "rtx" in given else "tensorrt"
        name += f"-{found['version']}.json"
        put_files(OUT, {name: (json.dumps(found, indent=1, sort_keys=True) + "\n").encode()})
        print(name, sum(len(c) for c in found["classes"].values()), "members")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
