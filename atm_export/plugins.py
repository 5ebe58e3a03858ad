"""Extensions from other packages: entry points of the group `atm_export.plugins`.

Each names a module, which registers what it brings when it is imported, or a function without
arguments that does. They are loaded when a name is asked for that nothing shipped has. Nothing here
imports more than the standard library.
"""

from __future__ import annotations

from importlib import metadata

from atm_export.errors import ConfigError

GROUP = "atm_export.plugins"
_seen: set[str] = set()


def load_plugins() -> bool:
    """Load every plugin that is installed, each once a process; returns whether one was.

    Raises ConfigError that names a plugin which does not load.
    """
    fresh = [entry for entry in _entries() if entry.value not in _seen]
    for entry in fresh:
        _seen.add(entry.value)  # before it loads: it may ask a registry itself
        try:
            found = entry.load()
            if callable(found):
                found()
        except Exception as error:  # whatever a stranger's code raises
            _seen.discard(entry.value)
            line = (str(error).splitlines() or [""])[0]
            raise ConfigError(
                f"the plugin {entry.name} ({entry.value}) does not load: "
                f"{type(error).__name__}: {line}; mend or uninstall it"
            ) from error
    return bool(fresh)


def _entries() -> list[metadata.EntryPoint]:
    """Installed plugins, by name and value: the same order everywhere."""
    return sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
