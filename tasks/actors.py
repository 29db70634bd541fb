"""The one file that knows Ray: an actor that holds a worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ray

from fewstep.tasks.parcel import Parcel, unpacked
from fewstep.tasks.work import Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker


def own_device(device: str, gpus: Sequence[object]) -> str:
    """The device as an actor sees it: the GPU that Ray gave it is the only one there, whatever its index outside."""
    return "cuda" if gpus and device.startswith("cuda") else device


def received() -> Path:
    """Where a machine keeps the files that it was sent, by their content."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep" / "received"


@ray.remote(max_restarts=0, max_task_retries=0)
class WorkerActor:
    """A `Worker` in a process of its own. Restarts are the driver's business: it must see and record them."""

    def __init__(self, given: WorkerSettings | Parcel) -> None:
        settings = unpacked(given, ray.get, received()) if isinstance(given, Parcel) else given
        device = own_device(settings.device, ray.get_gpu_ids())
        self._worker = Worker(replace(settings, device=device))
        self._worker.warm_up()

    def run(self, task: Task) -> TaskResult:
        """Run a task."""
        return self._worker.run(task)

    def pid(self) -> int:
        """Process id, for the record of events."""
        return os.getpid()
