"""The Optuna study behind a search: where proposals come from and what its sampler is told.

The study lives in memory and is a projection of the records: `restore` rebuilds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState, create_trial

from fewstep.errors import ScheduleError
from fewstep.pipeline.evaluator import Candidate
from fewstep.pipeline.ladder import ladder
from fewstep.pipeline.proposers.s3 import CANDIDATE_ATTR, ORIGIN_ATTR, SCHEDULE_ATTR, OnRefit, distributions
from fewstep.pipeline.proposers.samplers import make_sampler
from fewstep.pipeline.scope import Scope
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.evolution import random_genome
from fewstep.search_spaces.genome import Genome, to_genome, to_schedule
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.sampling.grids import preset_on_grid

if TYPE_CHECKING:
    from fewstep.pipeline.state import Trial

ATTEMPTS = 40
REFINED = "refine:"
WARM_REFINED = "warm-start-refined"
SEED_SOLVERS = ("unipc-2-bh2", "unipc-3-bh2", "dpmpp-3m")
SEED_GRIDS = ("quadratic-zero", "uniform-lambda-zero", "karras-zero", "uniform-t-zero")


def analytic_first_steps(noise: NoiseSchedule, nfe: int) -> list[Genome]:
    """Presets with one step more, whose first call is replaced by the noise itself: the search's first guesses.

    No preset saves that call, and a sampler would need many mutations to find it together with good times.
    """
    names = [f"{solver}/{where}" for where in SEED_GRIDS for solver in SEED_SOLVERS]
    schedules = [preset_on_grid(name, noise, nfe + 1).model_copy(update={"first_call": "zero_x0"}) for name in names]
    return list(dict.fromkeys(to_genome(schedule) for schedule in schedules)) if nfe > 1 else []


def is_refined(origin: str) -> bool:
    """Whether a candidate came from a refinement in this search."""
    return origin.startswith(REFINED)


def is_outside(origin: str) -> bool:
    """Whether a candidate's tables lie outside the space that is searched, so that the sampler learns nothing of it."""
    return is_refined(origin) or origin == WARM_REFINED


def _attributes(candidate: Candidate) -> dict[str, Any]:
    return {
        SCHEDULE_ATTR: candidate.schedule.to_json(),
        CANDIDATE_ATTR: candidate.schedule.hash,
        ORIGIN_ATTR: candidate.origin.partition(":")[0],
    }


class Proposer:
    """Asks the chosen sampler for schedules, and tells it how they did. Trial numbers are Optuna's."""

    def __init__(self, settings: SearchSettings, scope: Scope, on_refit: OnRefit | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self._scope = scope.space, scope
        self._origin, self._seed = settings.sampler, settings.seed
        screen, judge, *_ = ladder(settings)
        self._rungs = tuple(dict.fromkeys((screen.name, judge.name)))
        self._distributions = distributions(self.space)
        self._sampler = make_sampler(settings, self.space, on_refit, partial(analytic_first_steps, scope.noise))
        self._study = optuna.create_study(direction="minimize")
        self._trials: dict[int, optuna.trial.Trial] = {}
        self._next = 0

    def propose(self, nfe: int, seen: set[str]) -> Candidate:
        """A schedule at `nfe` that is not among the hashes in `seen`.

        A stock sampler may repeat itself for ever: after ATTEMPTS refused proposals a random member takes its
        place. Raises ScheduleError where not even that finds anything new.
        """
        for _ in range(ATTEMPTS):
            trial = self._ask({"nfe": nfe})
            try:
                schedule = to_schedule(self.space.suggest(trial))
                self._scope.check(schedule)
            except ScheduleError:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            if schedule.hash not in seen:
                return self._register(trial, schedule, self._origin)
            self._study.tell(trial, state=TrialState.FAIL)
        return self._anything_new(nfe, seen)

    def _anything_new(self, nfe: int, seen: set[str]) -> Candidate:
        rng = Random(f"{self._seed}/{self._next}")
        for _ in range(ATTEMPTS):
            try:
                schedule = to_schedule(random_genome(self.space, nfe, rng))
                self._scope.check(schedule)
            except ScheduleError:
                continue
            if schedule.hash not in seen:
                return self.enlist(schedule, "random")
        raise ScheduleError(f"no schedule at NFE {nfe} is left to try: the space of this model's times is too narrow")

    def enlist(self, schedule: SolverSchedule, origin: str) -> Candidate:
        """Enter a schedule from elsewhere as a trial."""
        trial = self._ask(self.space.parameters(to_genome(schedule)))
        self.space.suggest(trial)
        return self._register(trial, schedule, origin)

    def admit(self, schedule: SolverSchedule, origin: str) -> Candidate:
        """A schedule that is judged beside the others but lies outside the space: the sampler learns nothing of it."""
        trial = self._ask({})
        self._study.tell(trial, state=TrialState.FAIL)
        return Candidate(trial.number, schedule, origin)

    def report(self, candidate: Candidate, value: float, step: int) -> None:
        """An intermediate value: what the trial scored at rung number `step`."""
        if not is_outside(candidate.origin):
            self._trials[candidate.trial].report(value, step)

    def tell(self, candidate: Candidate, state: TrialState, objective: float | None) -> None:
        """Finish a trial."""
        if is_outside(candidate.origin):
            return
        values = objective if state == TrialState.COMPLETE else None
        self._study.tell(candidate.trial, values=values, state=state)

    def restore(self, trials: Mapping[int, Trial], objective: Callable[[Trial], float | None]) -> list[Trial]:
        """Rebuild the study from a search's trials; those whose objective is not known yet come back.

        Numbers without a trial were refused proposals, those of refined schedules mean nothing to the sampler.
        """
        untold = []
        for number in range(max(trials, default=-1) + 1):
            trial = trials.get(number)
            if trial is None or is_outside(trial.candidate.origin):
                self._study.add_trial(create_trial(state=TrialState.FAIL))
                continue
            parameters = trial.candidate.parameters
            steps = {step: trial.records.get(rung) for step, rung in enumerate(self._rungs)}
            values = {k: r.value for k, r in steps.items() if r is not None and r.value is not None}
            final = objective(trial) if trial.state == TrialState.COMPLETE else None
            state = TrialState.RUNNING if trial.state == TrialState.COMPLETE and final is None else trial.state
            if state == TrialState.PRUNED:
                final = values[max(values)]
            self._study.add_trial(
                create_trial(
                    state=state,
                    value=final,
                    params=parameters,
                    intermediate_values=values,
                    distributions={name: self._distributions[name] for name in parameters},
                    user_attrs=_attributes(trial.candidate),
                )
            )
            if state != trial.state:
                untold.append(trial)
        for frozen in self._study.get_trials(deepcopy=False):
            if frozen.state == TrialState.RUNNING:
                self._trials[frozen.number] = optuna.trial.Trial(self._study, frozen._trial_id)
        self._next = len(self._study.get_trials(deepcopy=False))
        return untold

    def _ask(self, fixed: dict[str, Any]) -> optuna.trial.Trial:
        self._study.sampler = self._sampler(self._next)
        self._study.enqueue_trial(fixed)
        self._next += 1
        return self._study.ask()

    def _register(self, trial: optuna.trial.Trial, schedule: SolverSchedule, origin: str) -> Candidate:
        candidate = Candidate(trial.number, schedule, origin, dict(trial.params))
        for name, value in _attributes(candidate).items():
            trial.set_user_attr(name, value)
        self._trials[trial.number] = trial
        return candidate
