"""What every benchmark shares: medians of wall time, and the one JSON line that it ends with."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

LIBRARIES = ("numpy", "scipy", "torch", "diffusers", "ray", "pytorch-fid")

P, T = ParamSpec("P"), TypeVar("T")


def emit(name: str, peer: str, unit: str, ours: float, theirs: float, conditions: dict[str, Any]) -> None:
    """Print one JSON line; `ratio` is ours / theirs, and the machine is added to `conditions`."""
    line = {
        "name": name,
        "peer": peer,
        "unit": unit,
        "ours": ours,
        "theirs": theirs,
        "ratio": ours / theirs,
        "conditions": {**conditions, **machine()},
    }
    print(json.dumps(line), flush=True)


def afresh(function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What it returns in a process of its own, as a command is: what came before weighs on memory and garbage."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args, options)


def machine() -> dict[str, Any]:
    """Machine class, versions and date: what a figure needs beside it to be compared."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "absent"
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


def median_seconds(function: Callable[[], object], repeats: int, warmup: int = 1) -> float:
    """Median wall time of `repeats` calls, in seconds, after `warmup` calls that do not count."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
