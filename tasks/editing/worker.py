"""A worker that edits: the bench of one subject, asked for figures of one config at a time."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from fewstep.errors import ConfigurationError, FewstepError
from fewstep.search_spaces.edit import EditConfig
from fewstep.tasks.editing.attributes import Part
from fewstep.tasks.editing.bench import make_bench
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.worker import Task, TaskResult, Worker, WorkerSettings


class EditOrder(BaseModel):
    """What a task of the kind `edit` holds as JSON: the config, and the part whose originals it edits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: EditConfig
    part: Part


class EditWorker:
    """Runs tasks of the kind `edit` on the first `count` originals of a part."""

    def __init__(self, settings: WorkerSettings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.device = settings.device
        cache = Path(settings.cache) if settings.cache else None
        self.bench = make_bench(EditSubject.model_validate_json(settings.edits), cache, settings.device)

    def run(self, task: Task) -> TaskResult:
        """Run a task. An edit that cannot be made comes back as a result with `error` set."""
        begun, calls = time.perf_counter(), self.bench.calls
        metrics: dict[str, float] = {}
        error = ""
        try:
            if task.kind != "edit":
                raise ConfigurationError(f"this worker was set up for edits, it cannot do {task.kind!r}")
            order = EditOrder.model_validate_json(task.edit)
            metrics = self.bench.evaluate(order.part, task.count, order.config).metrics()
        except (FewstepError, ValueError, RuntimeError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        return TaskResult(
            task,
            denoiser_calls=self.bench.calls - calls,
            seconds=time.perf_counter() - begun,
            device=self.device,
            error=error,
            versions={"torch": torch.__version__},
            metrics=metrics,
        )


def make_worker(settings: WorkerSettings) -> Worker | EditWorker:
    """The worker that the settings ask for: one for edits where they name a subject to edit."""
    return EditWorker(settings) if settings.edits else Worker(settings)
