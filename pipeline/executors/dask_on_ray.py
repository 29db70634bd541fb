"""Where Dask's tasks run: on the Ray cluster that this process has joined, or on its own threads."""

from __future__ import annotations

import sys
from typing import Any


def dask_scheduler() -> Any:
    """What `scheduler` of Dask's `compute` takes. Joins nothing, and does not import Ray where nothing did."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return "threads"
    from ray.util.dask import ray_dask_get

    return ray_dask_get
