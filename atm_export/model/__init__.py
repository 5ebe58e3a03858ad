"""The eager reference: the truth that every export is compared with."""

SHIPPED = ("demo", "lvvit", "t2t", "timm", "torchvision")  # families; others come from plugins
