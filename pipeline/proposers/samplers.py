"""Samplers by name: our own S^3, or any of Optuna's, made anew for every trial so that a resume repeats them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler

from fewstep.pipeline.proposers.s3 import OnRefit, S3Options, S3Sampler, Seeds
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.solver_space import SolverSpace

SamplerFor = Callable[[int], BaseSampler]


def make_sampler(
    settings: SearchSettings, space: SolverSpace, on_refit: OnRefit | None = None, seeds: Seeds | None = None
) -> SamplerFor:
    """A function from a trial's number to the sampler that proposes it.

    Optuna's samplers carry a random state that is not stored; seeding them by the trial's number makes the
    proposal a function of seed and history.
    """
    if settings.sampler in ("s3", "evolution"):
        options = S3Options(random_trials=settings.random_trials, surrogate=settings.surrogate)
        if settings.sampler == "evolution":
            # The published operators alone, from presets and random members.
            options, seeds = replace(options, surrogate="none", across=0.0, local=0.0), None
        ours = S3Sampler(space, seed=settings.seed, options=options, on_refit=on_refit, seeds=seeds)
        return lambda number: ours

    def stock(number: int) -> BaseSampler:
        seed = (settings.seed * 1_000_003 + number) % 2**32
        match settings.sampler:
            case "tpe":
                return TPESampler(seed=seed, constant_liar=True)
            case "nsgaii":
                return NSGAIISampler(seed=seed)
            case "cmaes":
                return CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case _:
                return RandomSampler(seed=seed)

    return stock
