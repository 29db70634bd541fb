"""The one interface through which the search runs tasks, wherever they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import ConfigDict, Field, NonNegativeInt, field_validator

from fewstep.plugins import Registry
from fewstep.search_spaces.checked import Checked

if TYPE_CHECKING:
    from fewstep.tasks.work import Task, TaskResult, WorkerSettings

MAX_TRIES = 3


EXECUTORS = Registry(
    "executor",
    {
        "ray": "fewstep.pipeline.executors.ray:RayExecutor",
        "in-process": "fewstep.pipeline.executors.in_process:InProcessExecutor",
    },
)


class ExecutionSettings(Checked):
    """Where tasks run. Does not change their results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    executor: str = Field("in-process", description="what runs evaluations: ray or in-process")
    workers: NonNegativeInt = Field(0, description="workers on Ray; 0: one a core, or one a GPU")
    address: str | None = Field(None, description="join the Ray cluster at this address")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, ...")

    @field_validator("executor")
    @classmethod
    def _exists(cls, name: str) -> str:
        return EXECUTORS.checked(name)


@dataclass(frozen=True)
class ExecutorEvent:
    """Something that happened to the machinery and belongs in the record, such as an actor's death."""

    kind: str
    message: str


class Executor(Protocol):
    """Takes tasks, gives back results in the order in which they finish.

    A task may run more than once (a worker died); its result is delivered once.
    """

    @property
    def capacity(self) -> int:
        """How many tasks to keep in flight so that no worker waits."""

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
    made: Executor = EXECUTORS.load(execution.executor)(worker, execution)
    return made
