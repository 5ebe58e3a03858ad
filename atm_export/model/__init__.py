"""The eager reference: the truth that every export is compared with."""

BUILT = ("demo", "timm")  # the families that `zoo` registers; known without importing torch
