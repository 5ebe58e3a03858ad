"""What a service embeds: load a run folder and ask it. Neither torch, timm, onnx nor pydantic.

    from atm_export.runtime import load

    session = load("build/deit_s")
    session.predict(["cat.jpeg", "dog.jpeg"])     # the main output: logits [2, classes]
    session.classify("cat.jpeg", top_k=3)[0]      # labels with probabilities

Needs onnxruntime, numpy and pillow; docs/runtime.md says how to install just these.
"""

from atm_export.comparison import Comparison
from atm_export.runtime.check import check_golden
from atm_export.runtime.session import Label, Session, load

__all__ = ["Comparison", "Label", "Session", "check_golden", "load"]
