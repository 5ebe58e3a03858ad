"""Command lines that rebuild and replay an engine without this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atm_export.backends.tensorrt.settings import Flavor, Profile


def command_lines(
    flavor: Flavor, graph: str, plan: str, image: Sequence[int], profiles: Sequence[Profile]
) -> Mapping[str, str]:
    """`rebuild` and `replay` with TensorRT's own tool, `polygraphy` with Polygraphy; image: the
    input's shape without the batch. The first profile is the one that is named."""
    first = profiles[0]
    rest = [str(length) for length in image]
    shapes = {
        name: "image:" + "x".join([str(batch), *rest])
        for name, batch in (("min", first.min), ("opt", first.opt), ("max", first.max))
    }
    tool = "tensorrt_rtx" if flavor is Flavor.RTX else "trtexec"
    # TensorRT 11 and RTX are strongly typed anyway; 10 needs to be told.
    typed = "" if flavor is Flavor.RTX else " --stronglyTyped"
    spans = " ".join(f"--{name}Shapes={shape}" for name, shape in shapes.items())
    lists = " ".join(
        f"--trt-{name}-shapes image:[{batch},{','.join(rest)}]"
        for name, batch in (("min", first.min), ("opt", first.opt), ("max", first.max))
    )
    switch = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if flavor is Flavor.RTX else ""
    return {
        "rebuild": f"{tool} --onnx={graph} --saveEngine={plan} --noTF32{typed} {spans}",
        "replay": f"{tool} --loadEngine={plan} --shapes={shapes['opt']}",
        "polygraphy": f"{switch}polygraphy convert {graph} -o {plan}"
        + f"{'' if flavor is Flavor.RTX else ' --strongly-typed'} {lists}",
    }
