"""Settings of a method as flat names: a group of them (an operating point) stands beside the
others, as presets, `--set` and searches write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from atm_export.settings import Settings

RESERVED = ("name", "preset")


def known_settings(kind: type[Settings]) -> dict[str, Any]:
    """Names and types of all settings; those of a group stand beside the others."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if group := _group(field.annotation):
            found |= known_settings(group)
        elif name not in RESERVED:
            found[name] = field.annotation
    return found


def required_settings(kind: type[Settings]) -> tuple[str, ...]:
    """Names without a usual value; a group's count even where the group may be left out."""
    found: list[str] = []
    for name, field in kind.model_fields.items():
        if group := _group(field.annotation):
            found += required_settings(group)
        elif field.is_required():
            found.append(name)
    return tuple(found)


def grouped(kind: type[Settings], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values as `kind` takes them; names that it does not know stay where they are."""
    values = dict(flat)
    for name, field in kind.model_fields.items():
        group = _group(field.annotation)
        own = (
            {key: values.pop(key) for key in known_settings(group) if key in values}
            if group
            else {}
        )
        if group and own:
            values[name] = grouped(group, own)
    return values


def flattened(settings: Settings) -> dict[str, Any]:
    """The settings that were given, as JSON values; of a group all."""
    given = settings.model_dump(mode="json", exclude_unset=True)
    found: dict[str, Any] = {}
    for name, value in given.items():
        group = getattr(settings, name)
        if isinstance(group, Settings):
            found |= group.model_dump(mode="json")
        elif name not in RESERVED:
            found[name] = value
    return found


def _group(annotation: Any) -> type[Settings] | None:
    """The kind of settings that a field holds, where it holds some."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, Settings):
            return part
    return None
