"""The one door to a Ray cluster, for what runs in parts that may run again elsewhere."""

from __future__ import annotations

from typing import Any

from atm_export.errors import AtmExportError, MissingDependencyError

RETRIES = -1  # of a task: as often as nodes die


def joined_cluster(address: str) -> Any:
    """Ray, joined to the cluster at `address` (auto: the local one).

    MissingDependencyError names the extra, AtmExportError says why there is no cluster.
    """
    ray = _load()
    if not ray.is_initialized():
        try:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AtmExportError(f"--ray {address}: no cluster there ({line})") from error
    return ray


def width_of(ray: Any, cpus: int) -> int:
    """How many tasks of `cpus` cores the cluster has room for, one at least."""
    cores = int(ray.cluster_resources().get("CPU", 1))
    return max(1, cores // cpus)


def _load() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("--ray needs ray: pip install 'atm-export[ray]'") from error
    return ray
