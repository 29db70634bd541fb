"""What is left of a grid: cells, denoiser calls, and the time that they take at the pace of what the tables hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fewstep.pipeline.executors.base import IN_PROCESS, ExecutionSettings
from fewstep.search_spaces.point import quantization_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import metric_class

if TYPE_CHECKING:
    from fewstep.pipeline.grid.grid import Grid, Planned


def forecast(grid: Grid, retry: bool = False) -> dict[str, Any]:
    """Cells by what is known of them, and calls and minutes of what is open, with `retry` of what failed too.

    Minutes are None where nothing was timed yet.
    `calls` is exact where every image is of a schedule; calibrations and teachers' samples are counted once a worker.
    """
    records = grid.records()
    status = [records[p.key].status if p.key in records else "open" for p in grid.plan]
    done = {key for key, record in records.items() if record.status == "complete" or not retry}
    todo = {p.key: p for p in grid.plan if p.key not in done}.values()
    calls = {key: _calls(grid, p) for key, p in ((p.key, p) for p in todo)}
    workers = workers_of(grid.execution)
    extra = _extra(grid, todo) * workers
    pace = Pace(grid.history(), grid.known.paces())
    models = [evaluator.files.hash for evaluator in grid.evaluators]
    seconds = [pace.seconds(models[p.group], metric_class(p.cell.rung.metric).figure, calls[p.key]) for p in todo]
    known = [each for each in seconds if each is not None]
    total = sum(known) * (1 + extra / max(1, sum(calls.values())))
    return {
        "cells": len(grid.plan),
        "evaluations": len({p.key for p in grid.plan}),
        **{name: status.count(name) for name in ("complete", "failed", "open")},
        "left_out": sum(one.cells for one in grid.left_out),
        "to_evaluate": len(todo),
        "calls": sum(calls.values()),
        "calibration_and_teacher_calls": extra,
        "workers": workers,
        "minutes": round(total / workers / 60, 1) if len(known) == len(seconds) else None,
    }


def workers_of(execution: ExecutionSettings) -> int:
    """How many workers there will be, as far as that is known before they are asked for."""
    if execution.resolved == IN_PROCESS:
        return 1
    from fewstep.pipeline.executors.ray_cluster import default_workers

    return execution.workers or default_workers(execution.device) or 1


class Pace:
    """Seconds a denoiser call of finished evaluations, by model and metric."""

    def __init__(
        self, records: Iterable[EvaluationRecord], others: Mapping[tuple[str, str], tuple[float, int]]
    ) -> None:
        self._totals: dict[tuple[str, ...], tuple[float, int]] = {}
        for r in records:
            self._add(r.model_hash, r.metric, r.seconds, r.denoiser_calls)
        for (model, metric), (seconds, calls) in others.items():
            self._add(model, metric, seconds, calls)

    def _add(self, model: str, metric: str, seconds: float, calls: int) -> None:
        for key in ((model, metric), (model,), ()) if calls else ():
            known = self._totals.get(key, (0.0, 0))
            self._totals[key] = known[0] + seconds, known[1] + calls

    def seconds(self, model: str, metric: str, calls: int) -> float | None:
        """Of so many calls, by what is known best: of model and metric, of the model, of anything; None for nothing."""
        found = next((t for key in ((model, metric), (model,), ()) if (t := self._totals.get(key))), None)
        return None if found is None else found[0] / found[1] * calls


def _calls(grid: Grid, planned: Planned) -> int:
    """Denoiser calls of an evaluation, the images apart that are kept from a smaller one."""
    cell = planned.cell
    return cell.point.nfe * grid.evaluators[planned.group].images_of(cell.point, cell.rung)


def _extra(grid: Grid, todo: Iterable[Planned]) -> int:
    """Calls of networks' calibrations and of teachers' samples, each once."""
    calibrations, taught = dict[tuple[int, str], int](), dict[tuple[object, ...], int]()
    for p in todo:
        group = grid.groups[p.group]
        config = quantization_of(p.cell.point)
        if config is not None:
            along = SolverSchedule.from_json(group.subject.calibration)
            calibrations[p.group, config.hash] = config.images * along.nfe
        if metric_class(p.cell.rung.metric).taught and group.teacher is not None:
            key = p.group, p.cell.rung.metric, p.cell.rung.seed
            taught[key] = group.teacher.nfe * p.cell.rung.images
    return sum(calibrations.values()) + sum(taught.values())
