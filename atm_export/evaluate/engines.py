"""Which engine of a run is evaluated and measured on this machine."""

from __future__ import annotations

from atm_export.errors import AtmExportError
from atm_export.fit import Here, check_fit
from atm_export.runfolder import Run


def choose_engine(run: Run) -> str | None:
    """An engine that fits this machine, FP32 first, then by name; where none fits, the first of
    all, whose opening says why; None where the run has none."""
    entries = run.manifest.get("engines", {})
    names = sorted(entries, key=lambda name: (entries[name]["precision"] != "fp32", name))
    fitting = (name for name in names if _fits(name, run))
    return next(fitting, names[0] if names else None)


def _fits(name: str, run: Run) -> bool:
    from atm_export.backends.tensorrt.api import gpu_sm, load_api
    from atm_export.backends.tensorrt.settings import Flavor

    facts = run.manifest["engines"][name]
    try:
        api = load_api(Flavor(facts["flavor"]))
        check_fit(name, facts, Here(api.flavor.value, api.version, gpu_sm()))
    except AtmExportError:
        return False
    return True
