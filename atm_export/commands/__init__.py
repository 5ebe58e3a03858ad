"""Subcommands of the command line, one file each; `cli.py` loads them by name when asked for.

Their help stands here, so that the list of commands needs none of their imports.
"""

VERIFY = """Prove a run folder again: every byte in the manifest, every golden vector.

Exit code 0 only when all of it holds; 10 for bytes that are not those of the export, 5 for numbers
that are not PyTorch's. Needs no PyTorch: the golden vectors were stored by it.

    atm-export verify build/deit_s
    atm-export verify build/deit_s build/deit_t --providers cpu
"""

TRITON = """Write a run folder into a model repository of Triton Inference Server.

config.pbtxt with dynamic batching, a warm-up with a real image, labels, a version folder; for the
ONNX Runtime backend (with --precision int8 on the CPU, where the run has that graph), with
--backend openvino for OpenVINO's, or with --engine for TensorRT's. An older model of that name is
replaced if it is as atm-export wrote it; anything else in its place is refused.

    atm-export triton build/deit_s --triton-repo models
    atm-export deit_s --merge per-image --triton-repo models      export and write at once
"""

WEB = """Write a page that runs exports in the browser: a picture in, merged regions and answer out.

Static files, to be served from anywhere: nothing is loaded from another place, and pictures stay on
the device. Several runs of one model become the stops of a slider. Merged regions need runs that
were exported with --trace. The npm package onnxruntime-web is copied, never fetched.

    npm install onnxruntime-web@1.30.0
    atm-export web build/deit_s --out site
    atm-export web build/deit_t-a build/deit_t-b --precision int8 --out site
    python -m http.server --directory site
"""
