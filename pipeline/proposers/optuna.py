"""The Optuna study behind a search by one of its samplers, on any space, with one objective or several.

The study lives in memory and is a projection of the records: `restore` rebuilds it. A sampler that carries a random
state is made anew for every trial, seeded by its number; what NSGA-II notes with a trial (its generation) is stored
with what it drew. So a resumed search goes on as the killed one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIIISampler, NSGAIISampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState, create_trial

from fewstep.pipeline.proposers.base import Check, Objectives, is_outside
from fewstep.pipeline.proposers.options import ATTEMPTS, CANDIDATE_ATTR, ORIGIN_ATTR, POINT_ATTR, distributions
from fewstep.pipeline.proposers.random_member import IMPOSSIBLE, new_random_member
from fewstep.pipeline.trial import Candidate, Trial
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.space import Space

SamplerFor = Callable[[int], BaseSampler]
# Where a candidate's parameters keep what the sampler noted, beside what it drew.
NOTE = "sampler_note"
# States of trials that have objectives.
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def _attributes(candidate: Candidate) -> dict[str, Any]:
    return {
        POINT_ATTR: candidate.json,
        CANDIDATE_ATTR: candidate.hash,
        ORIGIN_ATTR: candidate.origin.partition(":")[0],
    }


class OptunaProposer:
    """Asks a sampler for points, and tells it how they did. Trial numbers are Optuna's.

    `rungs` name those whose values the sampler learns from, in their order. With `by_nfe` the NFE is a parameter that
    the search fixes.
    """

    def __init__(
        self,
        space: Space[Any],
        sampler: SamplerFor,
        origin: str,
        seed: int,
        check: Check,
        rungs: Sequence[str],
        objectives: int = 1,
        by_nfe: bool = True,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self._sampler, self._origin, self._seed, self._check = space, sampler, origin, seed, check
        self._rungs, self._by_nfe, self._single = tuple(rungs), by_nfe, objectives == 1
        self._distributions = distributions(space)
        self._study = optuna.create_study(directions=["minimize"] * objectives)
        self._trials: dict[int, optuna.trial.Trial] = {}
        self._shared: dict[str, IntersectionSearchSpace] = {}
        self._next = 0

    # -- proposals ------------------------------------------------------------------------------------

    def ask(self, nfe: int, seen: AbstractSet[str], trials: Mapping[int, Trial]) -> Candidate | None:
        """See Proposer. A stock sampler may repeat itself for ever: in the end random members take its place."""
        for _ in range(ATTEMPTS):
            trial = self._ask({"nfe": nfe} if self._by_nfe else {})
            try:
                point = self.space.point(self.space.suggest(trial))
                self._check(point)
            except IMPOSSIBLE:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            if point.hash not in seen:
                return self._register(trial, point, self._origin)
            self._study.tell(trial, state=TrialState.FAIL)
        return self._anything_new(nfe, seen, trials)

    def _anything_new(self, nfe: int, seen: AbstractSet[str], trials: Mapping[int, Trial]) -> Candidate | None:
        point = new_random_member(self.space, nfe, f"{self._seed}/{self._next}", self._check, seen)
        return None if point is None else self.enlist(point, "random", trials)

    def enlist(self, point: Point, origin: str, trials: Mapping[int, Trial]) -> Candidate:
        """See Proposer."""
        trial = self._ask(self.space.parameters(self.space.genome(point)))
        self.space.suggest(trial)
        return self._register(trial, point, origin)

    def admit(self, point: Point, origin: str, trials: Mapping[int, Trial]) -> Candidate:
        """See Proposer."""
        trial = self._ask({})
        self._study.tell(trial, state=TrialState.FAIL)
        return Candidate(trial.number, point, origin)

    def _ask(self, fixed: dict[str, Any]) -> optuna.trial.Trial:
        self._study.sampler = sampler = self._sampler(self._next)
        self._next += 1
        for name, value in list(vars(sampler).items()):
            if isinstance(value, IntersectionSearchSpace):
                # It follows from the trials alone, and keeps what it has seen: a new one goes through all of them.
                setattr(sampler, name, self._shared.setdefault(name, value))
        # What `enqueue_trial` and `ask` do, but for looking through all past trials for one that waits.
        attributes = {"fixed_params": fixed} if fixed else {}
        begun = create_trial(state=TrialState.RUNNING, system_attrs=attributes)
        storage = self._study._storage
        self._study._thread_local.cached_all_trials = None
        return optuna.trial.Trial(self._study, storage.create_new_trial(self._study._study_id, begun))

    def _register(self, trial: optuna.trial.Trial, point: Point, origin: str) -> Candidate:
        noted = self._study._storage.get_trial(trial._trial_id).system_attrs
        note = {name: value for name, value in noted.items() if name.endswith("generation")}
        drawn: dict[str, Any] = dict(trial.params) | ({NOTE: note} if note else {})
        candidate = Candidate(trial.number, point, origin, drawn)
        for name, value in _attributes(candidate).items():
            trial.set_user_attr(name, value)
        self._trials[trial.number] = trial
        return candidate

    # -- what was learned -----------------------------------------------------------------------------

    def report(self, trial: Trial, value: float, step: int) -> None:
        """See Proposer. Optuna has no intermediate values where there are several objectives."""
        if self._single and not is_outside(trial.candidate):
            self._trials[trial.number].report(value, step)

    def tell(self, trial: Trial, objectives: Sequence[float] | None) -> None:
        """See Proposer."""
        if is_outside(trial.candidate):
            return
        state = self._state(trial, objectives)
        values = list(objectives) if objectives is not None and state == TrialState.COMPLETE else None
        self._study.tell(trial.number, values=values, state=state)

    def _state(self, trial: Trial, objectives: Sequence[float] | None) -> TrialState:
        """A trial's state as Optuna is told it: of several objectives those of a pruned trial are known as well."""
        if not self._single and trial.state == TrialState.PRUNED and objectives is not None:
            return TrialState.COMPLETE
        return trial.state

    def restore(self, trials: Mapping[int, Trial], objectives: Objectives) -> list[Trial]:
        """See Proposer. Numbers without a trial were refused proposals; refined ones mean nothing to the sampler."""
        untold = []
        for number in range(max(trials, default=-1) + 1):
            trial = trials.get(number)
            if trial is None or is_outside(trial.candidate):
                self._study.add_trial(create_trial(state=TrialState.FAIL))
            elif not self._restore(trial, objectives(trial) if trial.state in ENDED else None):
                untold.append(trial)
        known = self._study.get_trials(deepcopy=False)
        for frozen in known:
            if frozen.state == TrialState.RUNNING:
                self._trials[frozen.number] = optuna.trial.Trial(self._study, frozen._trial_id)
        self._next = len(known)
        self._restore_parents(trials)
        return untold

    def _restore(self, trial: Trial, objectives: Sequence[float] | None) -> bool:
        """Enter a trial as it was; whether Optuna knows that it is over, where it is."""
        drawn = dict(trial.candidate.parameters)
        note = drawn.pop(NOTE, {})
        steps = {step: trial.records.get(rung) for step, rung in enumerate(self._rungs)} if self._single else {}
        reported = {k: r.value for k, r in steps.items() if r is not None and r.value is not None}
        state = self._state(trial, objectives)
        over = not (state == TrialState.COMPLETE and objectives is None)
        if not over:
            state = TrialState.RUNNING
        values = list(objectives) if objectives is not None and state == TrialState.COMPLETE else None
        if state == TrialState.PRUNED and self._single and reported:
            values = [reported[max(reported)]]
        self._study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=drawn,
                intermediate_values=reported,
                distributions={name: self._distributions[name] for name in drawn},
                user_attrs=_attributes(trial.candidate),
                system_attrs=self._recalled(trial.number, note),
            )
        )
        return over

    def _recalled(self, number: int, note: dict[str, Any]) -> dict[str, Any]:
        """A trial's note; for the first of a CMA-ES generation with the state that is kept there, found out again.

        It would be a pickle, and what is read from a study's tables is never run.
        """
        sampler = self._sampler(number)
        if not isinstance(sampler, CmaEsSampler) or not note:
            return note
        known = self._study.get_trials(deepcopy=False)
        held = [t for t in known if t.state == TrialState.COMPLETE and t.system_attrs.items() >= note.items()]
        if held:
            return note
        again = optuna.create_study()
        again.add_trials(known)
        again.add_trial(create_trial(state=TrialState.RUNNING))
        running = again.get_trials(deepcopy=False)[-1]
        sampler.sample_relative(again, running, sampler.infer_relative_search_space(again, running))
        return dict(again.get_trials(deepcopy=False)[-1].system_attrs)

    def _restore_parents(self, trials: Mapping[int, Trial]) -> None:
        """A genetic sampler settles a generation's parents when it is first asked for one of their children.

        That is right after the last member of the generation before was told; NSGA-III draws lots among equals then.
        """
        last: dict[int, int] = {}
        for number, trial in sorted(trials.items()):
            for generation in trial.candidate.parameters.get(NOTE, {}).values():
                last[generation] = number
        for generation in range(1, max(last, default=0) + 1):
            sampler = self._sampler(last.get(generation - 1, -1) + 1)
            if isinstance(sampler, NSGAIISampler | NSGAIIISampler):
                sampler.get_parent_population(self._study, generation)
