"""The one interface through which the search runs tasks, wherever they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from fewstep.errors import ConfigurationError
from fewstep.plugins import Registry
from fewstep.search_spaces.checked import Checked

if TYPE_CHECKING:
    from fewstep.tasks.work import Task, TaskResult, WorkerSettings

# How often a task that ends or hangs its worker, or that the machine fails at, is run alone before it is given up.
MAX_TRIES = 3


EXECUTORS = Registry(
    "executor",
    {
        "ray": "fewstep.pipeline.executors.ray:RayExecutor",
        "in-process": "fewstep.pipeline.executors.in_process:InProcessExecutor",
        "dask": "fewstep.pipeline.executors.dask:DaskExecutor",
        "slurm": "fewstep.pipeline.executors.slurm:SlurmExecutor",
    },
)


AUTO, IN_PROCESS = "auto", "in-process"
# What an executor does not heed, and why. None is given for those of Ray and of plug-ins.
_HANGS = "a task {executor} cannot be ended when it hangs"
_SHARES = "shares of a GPU are given to workers on Ray"
UNHEEDED: dict[str, dict[str, str]] = {
    IN_PROCESS: {
        "workers": "{value} workers cannot run in-process, which is one",
        "address": "a search in-process joins no cluster, not {value!r}",
        "timeout": _HANGS.format(executor="in-process"),
        "cpus": "cores are given to workers on Ray",
        "gpus": _SHARES,
    },
    "dask": {"timeout": _HANGS.format(executor="on Dask"), "gpus": _SHARES},
    "slurm": {
        "address": "Slurm's jobs come to this process, which joins no cluster, not {value!r}",
        "timeout": _HANGS.format(executor="on Slurm"),
        "gpus": _SHARES,
    },
}
CUDA = ("", " and --device cuda")


class ExecutionSettings(Checked):
    """Where tasks run. Does not change their results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    executor: str = Field(
        AUTO,
        description="what runs evaluations: ray, in-process, dask, slurm, or auto: ray where --workers or --address is "
        "given",
    )
    workers: NonNegativeInt = Field(
        0,
        description="workers on Ray or Dask, on a cluster as many of them as it has room for; 0: one a core (a GPU, "
        "with --device cuda) of this machine or of the cluster, however it grows and shrinks; jobs of Slurm",
    )
    cpus: PositiveInt = Field(1, description="CPU cores, and threads, of a worker")
    gpus: float = Field(
        1.0, gt=0, le=1, allow_inf_nan=False, description="share of a GPU of a worker on Ray, with --device cuda"
    )
    address: str | None = Field(
        None,
        min_length=1,
        description="join the Ray cluster at this address; auto: the one on this machine; with --executor dask, its "
        "scheduler's",
    )
    timeout: NonNegativeFloat = Field(
        0.0,
        allow_inf_nan=False,
        description="seconds after which a task on Ray counts as hung; 0: many times what its like took, and a minute",
    )
    device: str = Field(
        "cpu",
        min_length=1,
        description="cpu, cuda or, in-process, cuda:1; on Ray every worker gets a GPU of its own, whatever the index",
    )

    known: tuple[str, ...] = Field(
        (),
        description="folders of searches, grids or evaluations whose results are taken, not computed again; patterns, "
        "as 'runs/*'",
    )

    @field_validator("executor")
    @classmethod
    def _exists(cls, name: str) -> str:
        if name != AUTO and name not in EXECUTORS.names:
            known = ", ".join((AUTO, *EXECUTORS.names))
            raise ConfigurationError(f"unknown executor {name!r}: choose one of {known}")
        return name

    @model_validator(mode="after")
    def _all_act(self) -> Self:
        """ConfigurationError for what the executor would not heed."""
        for name, why in UNHEEDED.get(self.resolved, {}).items():
            value = getattr(self, name)
            # One worker is what there is in-process.
            if value != type(self).model_fields[name].default and (name, value) != ("workers", 1):
                raise ConfigurationError(
                    f"{why.format(value=value)}: give --executor ray{CUDA[name == 'gpus']}, or no --{name}"
                )
        if self.gpus != 1 and not self.device.startswith("cuda"):
            raise ConfigurationError(f"{_SHARES}: give --executor ray and --device cuda, or no --gpus")
        return self

    @property
    def resolved(self) -> str:
        """The executor's name; `auto` is Ray where workers or a cluster are asked for, else this process."""
        if self.executor != AUTO:
            return self.executor
        return "ray" if self.workers or self.address else IN_PROCESS


@dataclass(frozen=True)
class ExecutorEvent:
    """Something that happened to the machinery and belongs in the record, such as an actor's death."""

    kind: str
    message: str
    data: Mapping[str, object] = field(default_factory=dict)


def quarantined(result: TaskResult, tries: int, trace: str) -> ExecutorEvent:
    """The event of a task that is given up: what it was, and where what it met was raised."""
    task = result.task
    what = {"key": task.key, "metric": task.metric, "point": task.point, "start": task.start, "count": task.count}
    return ExecutorEvent("quarantined", result.error, {**what, "tries": tries, "traceback": trace})


class Executor(Protocol):
    """Takes tasks, gives back results in the order in which they finish.

    A task may run more than once (a worker died, or is slow); its result is delivered once. A task that the machine
    failed at is tried MAX_TRIES times, and given up with an error of `fewstep.tasks.faults.given_up`. One that has a
    property `ready` tells how many results `next` gives without waiting: they are written together.
    """

    @property
    def capacity(self) -> int:
        """How many tasks to keep in flight so that no worker waits, and none piles up; it may change at any time."""

    @property
    def in_flight(self) -> int:
        """Tasks submitted whose results have not been delivered."""

    def submit(self, task: Task) -> None:
        """Queue a task."""

    def next(self) -> TaskResult:
        """Wait for the next result. Must not be called with nothing in flight."""

    def events(self) -> list[ExecutorEvent]:
        """What happened since the last call."""

    def close(self) -> None:
        """Release workers."""


def make_executor(execution: ExecutionSettings, worker: WorkerSettings) -> Executor:
    """The executor that the settings name, its workers set up; an executor is made from these two."""
    made: Executor = EXECUTORS.load(execution.resolved)(worker, execution)
    return made
