"""What a search will cost at most, before it is launched: denoiser calls by counting, time from a short measurement."""

from __future__ import annotations

import time
from typing import Any

import torch

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import IN_PROCESS, ExecutionSettings
from fewstep.pipeline.problems.networks import NAMED, NetworkProblem
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.sizes import plan, rows_at_most
from fewstep.pipeline.study import Study
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.tasks.measured_settings import taught
from fewstep.tasks.worker import Worker

SECONDS = 1.0
# The fewest trajectories that a config of the space asks for; a pass forward and back, in calls.
FEWEST_TRAJECTORIES, PASSES = 16, 3

ModelSearch = ScheduleProblem | NetworkProblem


def forecast(study: Study, execution: ExecutionSettings) -> dict[str, Any]:
    """Calls of the search and the report at most, see `calls_at_most`; minutes on this machine.

    Where networks are quantised, learning their rounding is counted in the minutes by the calls that it is worth.
    """
    workers = _workers(execution)
    figures = calls_at_most(_searched(study), workers)
    rate = measured_rate(study, execution)
    work = figures["total_calls_at_most"] + figures.get("calls_that_learning_is_worth_at_most", 0)
    return {
        **figures,
        "calls_a_second_a_worker": round(rate),
        "workers": workers,
        "minutes_at_most": round(work / rate / workers / 60, 1),
    }


def calls_at_most(problem: ModelSearch, workers: int = 1) -> dict[str, int]:
    """Denoiser calls of a search that nothing interrupts, by what they are for.

    The budget bounds everything before the report. What tuning leaves goes back to the search, what the search leaves
    to the finals. Each worker but the first makes the teacher's samples again.
    """
    problem.check_budget()
    s, prepaid = problem.settings, problem.prepaid
    shares = [plan(s.model_copy(update={"budget": s.budget - prepaid}), nfe) for nfe in s.nfes]
    assert s.report_images is not None
    if isinstance(problem, ScheduleProblem):
        reported = sum(s.nfes) * s.report_images * rows_at_most(s)
        calibrations: dict[str, int] = {}
    else:
        peers = {origin for origin, _ in problem.search().policy.seeds if origin.startswith(NAMED)}
        reported = (max(s.nfes) * s.front + sum(s.nfes) * (1 + len(peers))) * s.report_images
        calibrations = _calibrations(s, problem) if "quantization" in problem.kinds else {}
    # Each further metric samples the report's images again; one that is taught, the teacher's too.
    reported *= len(s.metric)
    reported += sum(map(taught, s.metric)) * problem.teacher.nfe * s.report_images
    again = prepaid * (workers - 1)
    return {
        "budget": s.budget,
        "teacher_calls": prepaid,
        "preset_calls_at_most": sum(share.presets for share in shares),
        "search_calls": sum(share.search for share in shares),
        "tuning_calls_at_most": sum(share.tuning for share in shares),
        "finals_calls": sum(share.finals for share in shares),
        "own_proposals_about": sum(share.proposals for share in shares),
        "teacher_calls_of_further_workers": again,
        "report_calls_at_most": reported,
        "total_calls_at_most": s.budget + again + reported,
        **calibrations,
    }


def _calibrations(s: SearchSettings, problem: NetworkProblem) -> dict[str, int]:
    """How many networks the budget calibrates at most, and the calls that learning their rounding is worth."""
    least = min(s.nfes) * s.distance_images + FEWEST_TRAJECTORIES * problem.calibration.nfe
    count = -(-s.budget // least)
    each = PASSES * s.calibration_iterations * QuantizationConfig().batch
    return {"calibrations_at_most": count, "calls_that_learning_is_worth_at_most": count * each}


def _workers(execution: ExecutionSettings) -> int:
    if execution.resolved == IN_PROCESS:
        return 1
    from fewstep.pipeline.executors.ray_cluster import cluster_workers

    return cluster_workers(execution, execution.device)


def measured_rate(study: Study, execution: ExecutionSettings) -> float:
    """Denoiser calls (images) a second of one worker, measured for about a second."""
    threads = torch.get_num_threads()
    worker = Worker(study.worker_settings(execution.device, threads=1))
    teacher = as_point(study.teacher)
    worker.render(teacher, 0, 0, min(worker.batch, 8))
    calls, begun = worker.calls, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        worker.render(teacher, 0, 0, max(8, worker.batch // 4))
    rate = (worker.calls - calls) / (time.perf_counter() - begun)
    torch.set_num_threads(threads)
    return rate


def _searched(study: Study) -> ModelSearch:
    if not isinstance(study.problem, ScheduleProblem | NetworkProblem):
        raise ConfigurationError("there is no forecast for a search of edits: its budget bounds the screened ones")
    return study.problem
