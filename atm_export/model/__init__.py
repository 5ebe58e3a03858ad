"""The eager reference: the truth that every export is compared with."""

# Families; others come from plugins.
SHIPPED = ("demo", "huggingface", "lvvit", "t2t", "timm", "torchvision")
