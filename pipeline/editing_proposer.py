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
from fewstep.pipeline.s3_sampler import Recorder
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.edit_space import EditSpace
from fewstep.tasks.models.files import ModelFiles

ATTEMPTS = 40
OBJECTIVES = 3
SEED_STRENGTHS = (2.0, 4.0, 6.0)
SEED_WAYS = (
    ("ddim/uniform-t@40", "ddim/uniform-t@40"),
    ("dpm-solver-2m/uniform-t@10", "dpmpp-2m/uniform-t@10"),
)


def seeds(space: EditSpace) -> list[EditConfig]:
    """Edits to begin with: z alone and z with h at some strengths, by the published calls and by far fewer."""
    found: dict[str, EditConfig] = {}
    for inversion, generation in SEED_WAYS:
        for strength in SEED_STRENGTHS:
            for latent in ("z", "both"):
                wanted = space.base.model_copy(
                    update={
                        "latent": latent,
                        "strength_z": strength,
                        "strength_h": strength if latent == "both" else 0.0,
                        "inversion": inversion,
                        "generation": generation,
                    }
                )
                config = space.config(space.values(wanted))
                found.setdefault(config.hash, config)
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
