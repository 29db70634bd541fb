"""Start a Ray on this machine or join a cluster, and see how many workers there is room for, now and later."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Self

import ray
import torch
from ray._private import state as ray_state
from ray._private import worker as ray_worker
from ray.exceptions import RayError
from ray.experimental import internal_kv

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors import local_ray
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.tasks.worker import check_device


def default_workers(device: str) -> int:
    """One actor a GPU where the device is one, else one a core that this process may use."""
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
# Ray prints what it has to say of workers that end among a command's results; the events tell it.
_printed = ray_worker.print_to_stdstream


def _nothing(*arguments: Any, **named: Any) -> None:
    pass


@dataclass(frozen=True)
class Need:
    """What a worker takes of a node: CPU cores, and a share of a GPU."""

    cpus: int = 1
    gpus: float = 0.0

    @classmethod
    def of(cls, execution: ExecutionSettings, device: str) -> Self:
        """What settings say."""
        return cls(execution.cpus, execution.gpus if device.startswith("cuda") else 0.0)

    def places(self, resources: Mapping[str, float]) -> int:
        """How many workers a node has room for. A share is of one GPU, so that what is left over of each is lost."""
        by_cpus = int(resources.get("CPU", 0) // self.cpus)
        return min(by_cpus, int(resources.get("GPU", 0)) * self.a_gpu) if self.gpus else by_cpus

    @property
    def a_gpu(self) -> int:
        """Workers on one GPU."""
        return int(1 / self.gpus + 1e-9) if self.gpus else 0

    def on_this_machine(self, device: str) -> int:
        """How many workers this machine is for, at least one where it has what one takes."""
        here = default_workers(device)
        return here * self.a_gpu if self.gpus else max(1, here // self.cpus)

    @property
    def told(self) -> str:
        """In a message, as what there must be of it for each worker."""
        cores = "CPUs" if self.cpus == 1 else f"times {self.cpus} CPUs"
        return (
            cores if not self.gpus else f"{cores} with a {'' if self.gpus == 1 else f'share of {self.gpus:g} of a '}GPU"
        )


@dataclass
class RayCluster:
    """This machine's own Ray, or a running cluster's, which may grow and shrink.

    `room` is how many workers its nodes had room for when it was last asked, whether or not others use it; `scales`
    whether an autoscaler adds nodes for what waits.
    """

    need: Need
    room: int = 0
    scales: bool = False
    owned: bool = False
    folder: Path | None = None
    node: str = ""
    lost: bool = False

    def connect(self, execution: ExecutionSettings, device: str) -> None:
        """Start or join Ray; ConfigurationError where there is none, or no room for any worker."""
        workers, address = execution.workers, execution.address
        self.owned = not ray.is_initialized()
        if address is None:
            # The actors own this machine's cores: a driver with threads of its own would only wait for them.
            torch.set_num_threads(1)
        if not self.owned and address not in (None, "auto"):
            raise ConfigurationError(f"Ray is already initialised in this process, cannot join {address!r}")
        if self.owned:
            ray_worker.print_to_stdstream = _nothing
        if self.owned and address is None:
            check_device(device)
            here = self.need.on_this_machine(device)
            if self.need.gpus and workers > here:
                raise ConfigurationError(_too_many(workers, here, "GPUs", "this machine"))
            self.room = workers or here
            gpus = math.ceil(self.room / self.need.a_gpu) if self.need.gpus else 0
            with _explained("cannot start Ray on this machine"):
                self.folder = local_ray.start(self.room * self.need.cpus, gpus, **QUIET)
            self.node = ray.get_runtime_context().get_node_id()
            return
        if self.owned:
            join(address)
        self.node = ray.get_runtime_context().get_node_id()
        self.refresh()
        if not self.room and not self.scales:
            raise ConfigurationError(_too_many(max(workers, 1), 0, self.need.told, "the Ray cluster"))

    def refresh(self) -> None:
        """See what nodes there are now."""
        self.room = sum(self.need.places(node["Resources"]) for node in ray.nodes() if node["Alive"])
        self.scales = self.scales or _has_autoscaler()

    def trouble(self, seconds: float) -> str | None:
        """What is wrong with it as a whole, nothing, or None where no answer comes in time; `room` is then as it is.

        One whose head is gone says nothing for a minute.
        """
        answer: list[str] = []

        def ask() -> None:
            with suppress(Exception):
                self.refresh()
                gone = any(not node["Alive"] and node["NodeID"] == self.node for node in ray.nodes())
                answer.append("has lost the node that this process is on" if gone else "")

        thread = Thread(target=ask, daemon=True)
        thread.start()
        thread.join(seconds)
        return answer[0] if answer else None

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


def join(address: str | None) -> None:
    """Join a running Ray cluster; ConfigurationError where there is none."""
    with _explained(f"cannot reach a Ray cluster at {address!r}"):
        ray.init(address=address, **QUIET)


def cluster_workers(execution: ExecutionSettings, device: str) -> int:
    """How many workers a search with these settings begins with; a cluster is asked."""
    need = Need.of(execution, device)
    if execution.address is None:
        return execution.workers or need.on_this_machine(device) or 1
    cluster = RayCluster(need)
    cluster.connect(execution, device)
    cluster.close()
    return min(cluster.room, execution.workers or cluster.room) or execution.workers or 1


def _has_autoscaler() -> bool:
    """Whether nodes are added for what waits. A cluster without says of each node that it is a kind of its own."""
    with suppress(Exception):
        if ray_state.state.get_cluster_config():
            return True
        status = json.loads(internal_kv._internal_kv_get(b"__autoscaling_status") or b"{}")
        kinds: dict[str, str] = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
        return any(kind != f"node_{node}" for node, kind in kinds.items())
    return False


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
