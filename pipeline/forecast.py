"""What a search will cost at most, before it is launched: denoiser calls by counting, time from a short measurement."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import IN_PROCESS, ExecutionSettings
from fewstep.pipeline.policies.halving import HalvingPolicy
from fewstep.pipeline.problems.networks import NAMED, NetworkProblem
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.search import Search
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Ladder, Rung
from fewstep.search_spaces.decisions import Range
from fewstep.search_spaces.point import as_point, quantization_of
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.quantization.space import QuantizationSpace
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS
from fewstep.tasks.metrics.metric import METRICS
from fewstep.tasks.work import GROUP
from fewstep.tasks.worker import Worker

SECONDS = 1.0
# The fewest trajectories that a config of the space asks for; a pass forward and back, in calls.
FEWEST_TRAJECTORIES, PASSES = 16, 3

ModelSearch = ScheduleProblem | NetworkProblem


class Free(NamedTuple):
    """Calls at most of seeds that are judged whatever the budget: at the screen, and above it."""

    screened: int = 0
    promoted: int = 0


def forecast(study: Study, execution: ExecutionSettings) -> dict[str, Any]:
    """Calls of the search, its finals and the report at most, see `calls_at_most`; minutes on this machine.

    Where networks are quantised, learning their rounding is counted in the minutes by the calls that it is worth.
    """
    workers, in_flight = _parallel(execution)
    figures = calls_at_most(_searched(study), workers, in_flight)
    rate = measured_rate(study, execution)
    work = figures["total_calls_at_most"] + figures.get("calls_that_learning_is_worth_at_most", 0)
    return {
        **figures,
        "calls_a_second_a_worker": round(rate),
        "workers": workers,
        "minutes_at_most": round(work / rate / workers / 60, 1),
    }


def calls_at_most(problem: ModelSearch, workers: int = 1, in_flight: int = 1) -> dict[str, int]:
    """Denoiser calls of a search that nothing interrupts, by what they are for.

    Presets and warm starts of a search of schedules are judged whatever the budget: where they cost more than it,
    `search_calls` is what they cost, else the budget. `overshoot_calls_at_most` is what is under way when the budget is
    spent, `in_flight` evaluations at once.
    """
    s, ladder, search = problem.settings, problem.ladder, problem.search()
    free = _free(search, ladder)
    most_free = sum(map(sum, free.values()))
    searched = max(s.budget, most_free)
    overshoot = max(most_free, _beside_free(problem, search, free, in_flight)) - searched
    teacher = problem.teacher.nfe * s.distance_images if s.screen == "distance" else 0
    growth, report = added(ladder.main, ladder.finals), ladder.report.images
    calibrations: dict[str, int] = {}
    if isinstance(problem, ScheduleProblem):
        finals = sum(s.nfes) * growth * s.finalists
        reported = sum(s.nfes) * report * (1 + s.report_presets * len(SEARCH_PRESETS))
    else:
        peers = {origin for origin, _ in search.policy.seeds if origin.startswith(NAMED)}
        finals = max(s.nfes) * growth * s.front
        reported = (max(s.nfes) * s.front + sum(s.nfes) * (1 + len(peers))) * report
        calibrations = _calibrations(s, problem) if "quantization" in problem.kinds else {}
    return {
        "budget": s.budget,
        **{f"{name}_calls_at_most": sum(calls) for name, calls in free.items()},
        "search_calls": searched,
        "overshoot_calls_at_most": max(0, overshoot),
        "finals_calls_at_most": finals,
        "report_calls_at_most": reported,
        "teacher_calls_a_worker": teacher,
        "total_calls_at_most": searched + max(0, overshoot) + finals + reported + teacher * workers,
        **calibrations,
    }


def beyond_budget(problem: object) -> str | None:
    """What to say of a search that its presets alone leave no budget for; None for any other."""
    if not isinstance(problem, ScheduleProblem):
        return None
    budget, free = problem.settings.budget, _free(problem.search(), problem.ladder)
    if sum(calls.screened for calls in free.values()) < budget:
        return None
    return (
        f"presets are judged whatever the budget: they take up to {sum(map(sum, free.values())):,} calls, which leaves "
        f"nothing of its {budget:,} to search with; raise --budget, or lower the images of the screen"
    )


def added(first: Rung, then: Rung) -> int:
    """Images that a rung makes of what another one judged before: whole groups are kept of metrics that grow."""
    if first is then:
        return 0
    kept = first.images // GROUP * GROUP if METRICS.load(then.metric).grows and first.metric == then.metric else 0
    return then.images - kept


def _free(search: Search, ladder: Ladder) -> dict[str, Free]:
    """Calls of what is judged whatever the budget, by what it is."""
    policy = search.policy
    if not isinstance(policy, HalvingPolicy):
        return {}
    screen, climb = ladder.screen.images, added(ladder.screen, ladder.main)
    screened = {nfe: len({s.hash for s in table.values()}) for nfe, table in policy.presets.items()}
    promoted = sum(nfe * policy.presets_promoted_at_most(nfe) for nfe in screened)
    found = {"presets": Free(sum(nfe * n for nfe, n in screened.items()) * screen, promoted * climb)}
    warm = sum(point.nfe for _, point in policy.warm)
    return found | ({"warm_starts": Free(warm * screen, warm * climb)} if warm else {})


def _beside_free(problem: ModelSearch, search: Search, free: dict[str, Free], in_flight: int) -> int:
    """Calls of a search that proposes something: what is in flight when the budget is spent may still climb."""
    s, (screen, main, *_) = problem.settings, problem.ladder
    if sum(calls.screened for calls in free.values()) >= s.budget:
        return 0
    last = [nfe * (main.images + (screen.images if screen.metric != main.metric else 0)) for nfe in s.nfes]
    if s.refine:
        calls = problem.teacher.nfe
        last += [nfe * main.images + s.refine_plan(nfe, calls).calls(nfe, calls) for nfe in s.nfes]
    calibrated = 0
    if isinstance(problem, NetworkProblem) and "quantization" in problem.kinds:
        calibrated = _most_trajectories(problem, search) * problem.calibration.nfe
    booked = s.budget - 1 + in_flight * (max(last) + calibrated)
    if in_flight > 1:
        # Presets climb when the last of their NFE is screened, and more may have been proposed by then.
        booked += sum(calls.promoted for calls in free.values())
    # A promotion is booked as if all of the screen's images were kept.
    lost = screen.images - (main.images - added(screen, main)) if screen.metric == main.metric and screen != main else 0
    return booked + -(-booked * lost // main.images)


def _most_trajectories(problem: NetworkProblem, search: Search) -> int:
    """The most trajectories that a config is calibrated on, of the space or among the seeds."""
    space = problem.networks["quantization"]
    assert isinstance(space, QuantizationSpace)
    images = space.decisions["images"]
    assert isinstance(images, Range)
    seeds = (quantization_of(point) for _, point in search.policy.seeds)
    return max(int(images.high), *(config.images for config in seeds if config is not None))


def _calibrations(s: SearchSettings, problem: NetworkProblem) -> dict[str, int]:
    """How many networks the budget calibrates at most, and the calls that learning their rounding is worth."""
    least = min(s.nfes) * s.distance_images + FEWEST_TRAJECTORIES * problem.calibration.nfe
    count = -(-s.budget // least)
    each = PASSES * s.calibration_iterations * QuantizationConfig().batch
    return {"calibrations_at_most": count, "calls_that_learning_is_worth_at_most": count * each}


def _parallel(execution: ExecutionSettings) -> tuple[int, int]:
    """Workers, and evaluations in flight at most."""
    if execution.resolved == IN_PROCESS:
        return 1, 1
    from fewstep.pipeline.executors.ray import DEPTH
    from fewstep.pipeline.executors.ray_cluster import default_workers

    workers = execution.workers or default_workers(execution.device) or 1
    return workers, DEPTH * workers


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
