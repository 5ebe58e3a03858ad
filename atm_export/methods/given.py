"""Settings of a method from plain values, and from `--set NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml

from atm_export.errors import ConfigError, unknown_name
from atm_export.methods import methods
from atm_export.methods.base import MethodSettings
from atm_export.methods.flat import grouped, known_settings
from atm_export.settings import validated


def method_settings(
    values: Mapping[str, Any], where: str = "method", groups: Collection[str] = ()
) -> MethodSettings:
    """Settings of the method that `values` names; ConfigError names the first bad field, without
    the groups that it lies in."""
    name = values.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: name: give one of {', '.join(methods)}")
    if name not in methods:
        raise ConfigError(f"{where}: {unknown_name('method', name, methods)}")
    found: MethodSettings = validated(methods[name].settings, values, where, groups)
    return found


def settings_of(
    method: str, flat: Mapping[str, Any], where: str = "method", **more: Any
) -> MethodSettings:
    """Settings of a method from flat names, as presets and searches hold them; `more`: fields as
    they are. ConfigError names the first bad one."""
    if method not in methods:
        raise ConfigError(f"{where}: {unknown_name('method', method, methods)}")
    values = grouped(methods[method].settings, flat)
    groups = values.keys() - flat.keys()
    return method_settings({**values, **more, "name": method}, where, groups)


def parse_settings(texts: Sequence[str], method: str) -> dict[str, Any]:
    """Values by setting, of the method or of a group of its settings (an operating point); VALUE is
    YAML, and a list by commas where the setting takes several. ConfigError names the option."""
    known = known_settings(methods[method].settings)
    known = {name: kind for name, kind in known.items() if name not in methods[method].ignores}
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise ConfigError(f"--set {text}: give NAME=VALUE, for example theta_min=0.9")
        if not known:
            raise ConfigError(f"--set {text}: method {method} has no settings")
        if name not in known:
            raise unknown_name(f"setting of method {method}", name, known)
        if name in found:
            raise ConfigError(f"--set {name}=... is given twice")
        found[name] = _value(name, value, known[name])
    return found


def _value(name: str, text: str, annotation: Any) -> Any:
    several = any(get_origin(part) is tuple for part in (annotation, *get_args(annotation)))
    try:
        if several and not text.startswith("["):
            return tuple(yaml.safe_load(part) for part in text.split(","))
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {name}={text}: {text} is no value") from None
