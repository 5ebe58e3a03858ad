"""The eager reference: the truth that every export is compared with."""

from importlib.util import find_spec

FAMILY_FILES = {"timm": "vit"}  # families whose file has another name


def family_module(family: str) -> str | None:
    """The module that registers `family`, found without importing it (or torch)."""
    name = f"{__name__}.{FAMILY_FILES.get(family, family)}"
    return name if family.isidentifier() and find_spec(name) else None
