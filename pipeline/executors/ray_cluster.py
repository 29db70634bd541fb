"""Start a Ray on this machine or join a cluster, and see how many workers there is room for."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import torch
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors import local_ray
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.tasks.worker import check_device


def default_workers(device: str) -> int:
    """One actor a GPU where the device is one, else one a core that this process may use."""
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Ray prints what it has to say of workers that end among a command's results; the events tell it.
_printed = ray_worker.print_to_stdstream


def _nothing(*arguments: Any, **named: Any) -> None:
    pass


@dataclass
class RayCluster:
    """This machine's own Ray, or a running cluster's: `workers` is how many are to be started, `gpu` what they need."""

    gpu: bool
    workers: int = 0
    owned: bool = False
    folder: Path | None = None
    node: str = ""
    lost: bool = False

    def connect(self, execution: ExecutionSettings, device: str) -> None:
        """Start or join Ray; ConfigurationError where there is none, or too little room."""
        workers, address = execution.workers, execution.address
        self.owned = not ray.is_initialized()
        if address is None:
            # The actors own this machine's cores: a driver with threads of its own would only wait for them.
            torch.set_num_threads(1)
        if not self.owned and address not in (None, "auto"):
            raise ConfigurationError(f"Ray is already initialised in this process, cannot join {address!r}")
        if self.owned:
            ray_worker.print_to_stdstream = _nothing
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.owned and address is None:
            check_device(device)
            here = default_workers(device)
            if self.gpu and workers > here:
                raise ConfigurationError(_too_many(workers, here, "GPUs", "this machine"))
            self.workers = workers or here
            with _explained("cannot start Ray on this machine"):
                self.folder = local_ray.start(self.workers, self.workers if self.gpu else 0, **quiet)
            self.node = ray.get_runtime_context().get_node_id()
            return
        if self.owned:
            with _explained(f"cannot reach a Ray cluster at {address!r}"):
                ray.init(address=address, **quiet)
        self.node, places = ray.get_runtime_context().get_node_id(), self.places()
        if workers > places or not places:
            kind = "CPUs with a GPU" if self.gpu else "CPUs"
            raise ConfigurationError(_too_many(max(workers, 1), places, kind, "the Ray cluster"))
        self.workers = workers or places

    def places(self) -> int:
        """How many workers the nodes that are alive have room for, whether or not others use them now."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needed = ("CPU", "GPU") if self.gpu else ("CPU",)
        return sum(int(min(resources.get(name, 0) for name in needed)) for resources in nodes)

    def trouble(self, seconds: float, idle: bool) -> str | None:
        """What is wrong with it as a whole, nothing, or None where no answer comes in time.

        One whose head is gone says nothing for a minute. Whether nodes are left that hold workers counts where those
        that there were are `idle`.
        """
        answer: list[str] = []

        def ask() -> None:
            with suppress(Exception):
                answer.append(self._trouble(idle))

        thread = Thread(target=ask, daemon=True)
        thread.start()
        thread.join(seconds)
        return answer[0] if answer else None

    def _trouble(self, idle: bool) -> str:
        if any(not node["Alive"] and node["NodeID"] == self.node for node in ray.nodes()):
            return "has lost the node that this process is on"
        return "has no node left that holds a worker" if idle and not self.places() else ""

    def leave(self) -> None:
        """Ask nothing more of a cluster that is lost: each call would wait for it, Ray's at the process's end too."""
        if not self.lost:
            atexit.register(_exit)
        self.lost = True

    def close(self) -> None:
        """Stop Ray where it was started or joined here."""
        if self.owned and not self.lost:
            ray.shutdown()
            ray_worker.print_to_stdstream = _printed
        local_ray.remove(self.folder)


def _exit() -> None:
    # What Ray does then waits for the head, and ends with a trace of its own.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _too_many(workers: int, places: int, kind: str, where: str) -> str:
    return f"{workers} workers need as many {kind}, {where} has {places}: lower --workers or add machines"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ConfigurationError(f"{what}: {(str(error).strip().splitlines() or [''])[0]}") from None
