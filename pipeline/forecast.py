"""What a search will cost, before it is launched: denoiser calls exactly, time from a short measurement."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.problems.networks import NAMES, NetworkProblem
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS
from fewstep.tasks.worker import Worker

SECONDS = 1.0
# The fewest trajectories that a config of the space asks for; a pass forward and back, in calls.
FEWEST_TRAJECTORIES, PASSES = 16, 3


def forecast(study: Study, execution: ExecutionSettings) -> dict[str, Any]:
    """Calls of the search (presets included), its finals and the report at most; minutes on this machine.

    Where networks are quantised, learning their rounding is counted in the minutes by the calls that it is worth.
    """
    s = _searched(study)
    finals, report = study.problem.ladder.finals, study.problem.ladder.report
    growth = finals.images - s.frechet_images
    teacher_calls = study.teacher.nfe * s.distance_images if s.screen == "distance" else 0
    calibrations: dict[str, int] = {}
    if s.space == "schedule":
        final_calls = sum(nfe * growth * s.finalists for nfe in s.nfes)
        report_calls = sum(nfe * report.images * (1 + s.report_presets * len(SEARCH_PRESETS)) for nfe in s.nfes)
    else:
        final_calls = max(s.nfes) * growth * s.front
        report_calls = (max(s.nfes) * s.front + sum(s.nfes) * (1 + len(NAMES))) * report.images
        assert isinstance(study.problem, NetworkProblem)
        calibrations = _calibrations(s, study.problem) if "quantization" in study.problem.kinds else {}
    total = s.budget + final_calls + report_calls + teacher_calls
    rate = measured_rate(study, execution)
    workers = execution.workers or (os.cpu_count() or 1) if execution.resolved == "ray" else 1
    work = total + calibrations.get("calls_that_learning_is_worth_at_most", 0)
    return {
        "search_calls": s.budget,
        "finals_calls_at_most": final_calls,
        "report_calls_at_most": report_calls,
        "teacher_calls_a_worker": teacher_calls,
        "total_calls_at_most": total,
        **calibrations,
        "calls_a_second_a_worker": round(rate),
        "workers": workers,
        "minutes_at_most": round(work / rate / workers / 60, 1),
    }


def _calibrations(s: SearchSettings, problem: NetworkProblem) -> dict[str, int]:
    """How many networks the budget calibrates at most, and the calls that learning their rounding is worth."""
    least = min(s.nfes) * s.distance_images + FEWEST_TRAJECTORIES * problem.calibration.nfe
    count = -(-s.budget // least)
    each = PASSES * s.calibration_iterations * QuantizationConfig().batch
    return {"calibrations_at_most": count, "calls_that_learning_is_worth_at_most": count * each}


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


def _searched(study: Study) -> SearchSettings:
    if not isinstance(study.settings, SearchSettings):
        raise ConfigurationError("there is no forecast for a search of edits: its budget bounds the screened ones")
    return study.settings
