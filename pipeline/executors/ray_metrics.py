"""What a search does, as metrics that Ray exports to Prometheus; `dashboards/grafana/` draws them."""

from __future__ import annotations

from collections import Counter as Tally

from ray.util.metrics import Counter, Gauge

from fewstep.tasks.work import Task, TaskResult

# By name, what each says. Ray exports them as `ray_NAME`, a counter with `_total` behind it.
COUNTERS = {
    "fewstep_evaluations": "evaluations, and jobs such as tuning, whose last task came back",
    "fewstep_failed_evaluations": "those of which a task failed",
    "fewstep_denoiser_calls": "denoiser calls, one an image",
}
GAUGES = {
    "fewstep_queue_length": "tasks that wait for a worker",
    "fewstep_busy_share": "share of the workers that have a task",
    "fewstep_workers": "workers that are up",
}


class RayMetrics:
    """Counts what goes out and what comes back. An evaluation is done with the last of its tasks in flight."""

    def __init__(self) -> None:
        self._counters = {name: Counter(name, told) for name, told in COUNTERS.items()}
        self._gauges = {name: Gauge(name, told) for name, told in GAUGES.items()}
        self._open: Tally[str] = Tally()
        self._failed: set[str] = set()

    def submitted(self, task: Task) -> None:
        """A task goes out."""
        self._open[task.key] += 1

    def delivered(self, result: TaskResult, queue: int, busy: int, workers: int) -> None:
        """A result comes back, and so many tasks wait, so many of the workers are busy."""
        key = result.task.key
        self._open[key] -= 1
        if result.error:
            self._failed.add(key)
        if result.denoiser_calls:
            self._counters["fewstep_denoiser_calls"].inc(result.denoiser_calls)
        if self._open[key] <= 0:
            del self._open[key]
            self._counters["fewstep_evaluations"].inc()
            if key in self._failed:
                self._failed.remove(key)
                self._counters["fewstep_failed_evaluations"].inc()
        self._gauges["fewstep_queue_length"].set(queue)
        self._gauges["fewstep_busy_share"].set(busy / workers if workers else 0.0)
        self._gauges["fewstep_workers"].set(workers)
