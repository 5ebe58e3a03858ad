"""Where timings of earlier builds are kept: the user's cache folder, a file for each TensorRT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from atm_export.backends.tensorrt.api import Api


def timing_cache_file(api: Api, sms: Sequence[int]) -> Path:
    """$XDG_CACHE_HOME (or ~/.cache)/atm-export/timing/FLAVOR-VERSION-SM.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    targets = "-".join(f"sm{sm}" for sm in sms)
    return root / "atm-export" / "timing" / f"{api.flavor.value}-{api.version}-{targets}.cache"
