"""Where edits come from: known ones first, then Optuna's multi-objective samplers.

The Optuna study lives in memory and is a projection of the records. A sampler is made anew for every trial, seeded by
its number; what NSGA-II notes with a trial (its generation) is stored with what it drew, so that a resumed search goes
on as the killed one would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.pipeline.editing_evaluation import SAMPLER_NOTE, EditCandidate, Objectives, edit_candidate
from fewstep.pipeline.editing_settings import EditSettings
from fewstep.pipeline.proposers.s3 import Recorder
from fewstep.search_spaces.edit import PUBLISHED, EditConfig
from fewstep.search_spaces.edit_space import EditSpace
from fewstep.tasks.models.files import ModelFiles

ATTEMPTS = 40
OBJECTIVES = 3
STOCK_STRENGTHS = (2.0, 4.0, 6.0)
FAST = ("dpm-solver-2m/uniform-t@10", "dpmpp-2m/uniform-t@10")
# (strength, C): a small C brings the normal towards the difference of the sides' means.
FAST_EDITS = ((3.0, 1.0), (5.0, 1.0), (3.0, 1e-3))


def seeds(space: EditSpace) -> list[EditConfig]:
    """Edits to begin with: by the published calls at the base's step, then by far fewer at four steps.

    All move z, since h alone is known to do little; the sampler tries the rest.
    """
    found: dict[str, EditConfig] = {}

    def add(**changes: object) -> None:
        config = space.config(space.values(space.base.model_copy(update={"latent": "z", "strength_h": 0.0, **changes})))
        found.setdefault(config.hash, config)

    for strength in STOCK_STRENGTHS:
        add(strength_z=strength, inversion=PUBLISHED, generation=PUBLISHED)
    # From the second step on: at the very start there is next to no image left.
    later = sorted(space.steps)[1:] or list(space.steps)
    steps = [later[round(i * (len(later) - 1) / 4)] for i in range(4)]
    for strength, C in FAST_EDITS:
        for step in steps:
            boundary = space.base.boundary.model_copy(update={"C": C})
            add(step=step, strength_z=strength, inversion=FAST[0], generation=FAST[1], boundary=boundary)
    return list(found.values())


class EditProposer:
    """Asks an Optuna sampler for edits and tells it how they did. Trial numbers are Optuna's."""

    def __init__(self, settings: EditSettings, space: EditSpace, files: ModelFiles) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._settings, self._space, self._files = settings, space, files
        self._seeds = seeds(space)
        self._study = optuna.create_study(directions=["minimize"] * OBJECTIVES)
        recorder = Recorder({})
        space.suggest(recorder)
        self._distributions: dict[str, BaseDistribution] = recorder.space

    def propose(self, seen: set[str]) -> EditCandidate | None:
        """An edit that is not among the hashes in `seen`; None where none was found."""
        while fresh := [config for config in self._seeds if config.hash not in seen]:
            candidate = self._ask(fresh[0], "seed")
            if candidate is not None and candidate.hash not in seen:
                return candidate
            if candidate is not None:
                self.tell(candidate, None)
            self._seeds.remove(fresh[0])
        for _ in range(ATTEMPTS):
            candidate = self._ask(None, self._settings.sampler)
            if candidate is not None and candidate.hash not in seen:
                return candidate
            if candidate is not None:
                self.tell(candidate, None)
        return None

    def tell(self, candidate: EditCandidate, values: Objectives | None) -> None:
        """Finish a trial; None where it has no values."""
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        self._study.tell(candidate.trial, values=values, state=state)

    def restore(self, candidates: Sequence[tuple[EditCandidate, Objectives | None, bool]]) -> None:
        """Rebuild the study from (candidate, values, over), by rising number. Numbers in between were refused."""
        known = {candidate.trial: (candidate, values, over) for candidate, values, over in candidates}
        for number in range(max(known, default=-1) + 1):
            if number not in known:
                self._study.add_trial(create_trial(state=TrialState.FAIL))
                continue
            candidate, values, over = known[number]
            drawn = dict(candidate.parameters)
            note = drawn.pop(SAMPLER_NOTE, {})
            state = TrialState.RUNNING if not over else TrialState.COMPLETE if values else TrialState.FAIL
            self._study.add_trial(
                create_trial(
                    state=state,
                    values=values if state == TrialState.COMPLETE else None,
                    params=drawn,
                    distributions={name: self._distributions[name] for name in drawn},
                    system_attrs=note,
                )
            )
        self._restore_parents([n for c, _, _ in candidates for n in c.parameters.get(SAMPLER_NOTE, {}).values()])

    def _restore_parents(self, generations: Sequence[int]) -> None:
        """NSGA-II settles a generation's parents when it first asks for them, and from then on has them in order."""
        sampler = self._sampler(0)
        if isinstance(sampler, NSGAIISampler):
            for generation in range(1, max(generations, default=0) + 1):
                sampler.get_parent_population(self._study, generation)

    def _ask(self, fixed: EditConfig | None, origin: str) -> EditCandidate | None:
        number = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = self._sampler(number)
        if fixed is not None:
            self._study.enqueue_trial(self._space.parameters(self._space.values(fixed)))
        trial = self._study.ask()
        try:
            config = self._space.suggest(trial)
            noted = self._study.get_trials(deepcopy=False)[trial.number].system_attrs
            note = {name: value for name, value in noted.items() if name.endswith("generation")}
            drawn: dict[str, Any] = dict(trial.params) | ({SAMPLER_NOTE: note} if note else {})
            return edit_candidate(trial.number, config, origin, drawn, self._files)
        except (ScheduleError, ConfigurationError):
            self._study.tell(trial, state=TrialState.FAIL)
            return None

    def _sampler(self, number: int) -> BaseSampler:
        seed = (self._settings.seed * 1_000_003 + number) % 2**32
        match self._settings.sampler:
            case "nsgaii":
                return NSGAIISampler(population_size=self._settings.population, seed=seed)
            case "tpe":
                return TPESampler(seed=seed, multivariate=True, constant_liar=True)
            case "random":
                return RandomSampler(seed=seed)
