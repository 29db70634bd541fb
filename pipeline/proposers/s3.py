"""S^3, predictor-guided search, as an Optuna sampler for any space with one objective (USF, section 4).

Every trial's genome is decided at once, from the seed, the trial's number and the trials before it:
first random members, then children of the best known ones, ranked by a
surrogate that is trained on everything evaluated so far. The values it learns from are the trials'
intermediate values, one a rung.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from fewstep.pipeline.proposers.base import KNOWN
from fewstep.pipeline.proposers.moves import local_move
from fewstep.pipeline.proposers.options import (
    ORIGIN_ATTR,
    POINT_ATTR,
    OnRefit,
    S3Options,
    distributions,
    milestone,
)
from fewstep.pipeline.proposers.surrogate.encoder import Example
from fewstep.pipeline.proposers.surrogate.registry import Surrogate, make_surrogate
from fewstep.search_spaces.point import parse_point
from fewstep.search_spaces.space import Space

ENOUGH = 12
NEIGHBOURS = 5
MUTATION_RATES = (0.05, 0.12, 0.25)


class S3Sampler(BaseSampler):
    """Proposes whole members of a space; see the module's docstring."""

    def __init__(
        self,
        space: Space[Any],
        nfes: Sequence[int],
        rungs: int = 2,
        seed: int = 0,
        options: S3Options | None = None,
        on_refit: OnRefit | None = None,
    ) -> None:
        self._space, self._nfes, self._rungs, self._seed = space, nfes, rungs, seed
        self._options = options or S3Options()
        self._on_refit = on_refit
        self._distributions = distributions(space)
        self._surrogate: Surrogate | None = None
        self._fitted_at = 0
        self._seconds = 0.0
        self._genomes: dict[int, Any] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space: a proposal is made for all parameters together."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of the proposed genome, for the NFE that was fixed or else drawn at random."""
        rng = Random(f"{self._seed}/{trial.number}")
        fixed = trial.system_attrs.get("fixed_params", {})
        nfe = int(fixed.get("nfe", rng.choice(self._nfes)))
        if len(fixed) > 1:
            return {}
        past = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number and POINT_ATTR in t.user_attrs]
        return self._space.parameters(self.propose(past, nfe, trial.number, rng))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that is not part of the space: drawn uniformly."""
        seed = Random(f"{self._seed}/{trial.number}/{param_name}").randrange(2**31)
        return optuna.samplers.RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    def propose(self, past: list[FrozenTrial], nfe: int, number: int, rng: Random) -> Any:
        """The next genome at `nfe`, none that the past trials hold already."""
        known = [(t, self._genome(t)) for t in past]
        mine = [(t, g) for t, g in known if self._space.nfe(g) == nfe]
        seen = {g for _, g in mine}
        drawn = sum(1 for t, _ in mine if f"{t.user_attrs.get(ORIGIN_ATTR)}:" not in KNOWN)
        if drawn < self._options.random_trials:
            return self._space.random(nfe, rng)
        share = rng.random()
        found = None
        if share < self._options.across:
            found = self._from_neighbour(known, nfe, rng)
        elif share < self._options.across + self._options.local:
            found = local_move(self._space, mine, self._fidelity(mine), f"{self._seed}/{number}")
        if found is not None and found not in seen:
            return found
        parents = [g for _, g in sorted(mine, key=lambda entry: _standing(entry[0]))[: self._options.parents]]
        self._refit(known, number)
        guided = self._surrogate is not None and self._surrogate.ready
        if guided and rng.random() >= self._options.explore:
            begun = time.perf_counter()
            chosen = self._evolve_on_surrogate(parents, self._fidelity(mine), seen, rng)
            self._seconds += time.perf_counter() - begun
            return chosen
        for _ in range(100):
            child = self._child(parents, rng)
            if child not in seen:
                return child
        return self._space.random(nfe, rng)

    def _fidelity(self, mine: Sequence[tuple[FrozenTrial, Any]]) -> int:
        """The highest rung whose values are known for enough members of an NFE decides."""
        counts = [sum(1 for t, _ in mine if r in t.intermediate_values) for r in range(self._rungs)]
        return max((r for r in range(self._rungs) if counts[r] >= ENOUGH), default=0)

    def _from_neighbour(self, known: Sequence[tuple[FrozenTrial, Any]], nfe: int, rng: Random) -> Any | None:
        """An elite of the nearest other NFE on either side, with as many steps added or dropped as it takes."""
        nfes = sorted({self._space.nfe(g) for _, g in known})
        beside = [max((n for n in nfes if n < nfe), default=0), min((n for n in nfes if n > nfe), default=0)]
        beside = [n for n in beside if n]
        if not beside:
            return None
        source = rng.choice(beside)
        ranked = sorted(
            ((t, g) for t, g in known if self._space.nfe(g) == source), key=lambda entry: _standing(entry[0])
        )
        return self._space.with_nfe(rng.choice(ranked[:NEIGHBOURS])[1], nfe, rng)

    def _genome(self, trial: FrozenTrial) -> Any:
        if trial.number not in self._genomes:
            self._genomes[trial.number] = self._space.genome(parse_point(trial.user_attrs[POINT_ATTR]))
        return self._genomes[trial.number]

    def _child(self, parents: list[Any], rng: Random) -> Any:
        # Linear ranking: the best parent is twice as likely as the middle one.
        a, b = rng.choices(range(len(parents)), range(len(parents), 0, -1), k=2)
        crossed = rng.random() < self._options.crossover
        mixed = self._space.cross(parents[a], parents[b], rng) if crossed else parents[a]
        return self._space.mutate(mixed, rng, rng.choice(MUTATION_RATES))

    def _evolve_on_surrogate(self, parents: list[Any], fidelity: int, seen: set[Any], rng: Random) -> Any:
        assert self._surrogate is not None
        pool: dict[Any, float] = {}
        breeders = parents
        for _ in range(self._options.generations):
            batch = [g for g in (self._child(breeders, rng) for _ in range(self._options.children)) if g not in seen]
            if batch:
                # What little the dear rung has told, and the many values of the cheap one.
                scores = self._surrogate.predict([self._space.encode(g) for g in batch])[:, : fidelity + 1].sum(axis=1)
                pool.update(zip(batch, map(float, scores), strict=True))
            breeders = sorted(pool, key=lambda g: pool[g])[: self._options.parents] or parents
        return breeders[0]

    def _refit(self, known: list[tuple[FrozenTrial, Any]], number: int) -> None:
        at = milestone(number, self._options)
        if not at or at == self._fitted_at or self._options.surrogate == "none":
            return
        usable = [(t, g) for t, g in known if t.number < at and t.intermediate_values]
        examples = [self._example(t, g) for t, g in usable]
        fresh = [self._example(t, g) for t, g in usable if t.number >= self._fitted_at]
        tau = self._surrogate.tau(fresh, 0) if self._surrogate is not None and fresh else None
        surrogate = make_surrogate(self._options.surrogate, self._rungs, self._seed)
        begun = time.perf_counter()
        surrogate.fit(examples)
        self._seconds += time.perf_counter() - begun
        if surrogate.ready:
            self._surrogate, self._fitted_at = surrogate, at
            if self._on_refit:
                self._on_refit(len(examples), tau, self._seconds)
            self._seconds = 0.0

    def _example(self, trial: FrozenTrial, genome: Any) -> Example:
        values = (trial.intermediate_values.get(r, float("nan")) for r in range(self._rungs))
        return Example(self._space.encode(genome), self._space.nfe(genome), tuple(values))


def _standing(trial: FrozenTrial) -> tuple[int, float]:
    """Sort key: the highest rung reached first, then its value; trials without any value last."""
    if not trial.intermediate_values or trial.state == TrialState.FAIL:
        return 1, 0.0
    rung = max(trial.intermediate_values)
    return -rung, trial.intermediate_values[rung]
