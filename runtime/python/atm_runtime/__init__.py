"""Load what `atm-export` wrote and ask it: numpy, pillow and onnxruntime are all that it needs.

    from atm_runtime import load

    session = load("build/deit_s")
    session.classify("cat.jpeg", top_k=3)[0]      # labels with probabilities

The same code as `atm_export.runtime`, under a name of its own; errors are in `atm_runtime.errors`.
"""

from atm_runtime.runtime import Comparison, Label, Session, check_golden, load

__all__ = ["Comparison", "Label", "Session", "check_golden", "load"]
