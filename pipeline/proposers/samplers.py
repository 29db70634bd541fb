"""Optuna's samplers by name, made anew for every trial so that a resume repeats them."""

from __future__ import annotations

from collections.abc import Callable

from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)

from fewstep.errors import ConfigurationError
from fewstep.pipeline.settings import POPULATION

# Ours, which are no Optuna samplers in every space, and Optuna's.
OWN = ("s3", "evolution")
SAMPLERS = (*OWN, "tpe", "random", "nsgaii", "nsgaiii", "gp", "cmaes")


def stock_sampler(
    name: str, seed: int, objectives: int, flat: bool, population: int = POPULATION
) -> Callable[[int], BaseSampler]:
    """A function from a trial's number to the sampler that proposes it. `flat`: all members have the same parameters.

    Optuna's samplers carry a random state that is not stored; seeding them by the trial's number makes the proposal a
    function of seed and history. ConfigurationError for a name that there is not, or that cannot do `objectives`.
    """
    if name == "cmaes" and objectives > 1:
        raise ConfigurationError(f"sampler 'cmaes' has one objective, this space has {objectives}: choose another")

    def made(number: int) -> BaseSampler:
        own = (seed * 1_000_003 + number) % 2**32
        match name:
            case "tpe":
                # Where members differ in their parameters, how they are drawn is best left to Optuna.
                return TPESampler(seed=own, constant_liar=True, multivariate=True if flat else None)
            case "nsgaii":
                return NSGAIISampler(seed=own, population_size=population)
            case "nsgaiii":
                return NSGAIIISampler(seed=own, population_size=population)
            case "gp":
                return GPSampler(seed=own, deterministic_objective=False)
            case "cmaes":
                return CmaEsSampler(seed=own, warn_independent_sampling=False)
            case "random":
                return RandomSampler(seed=own)
        raise ConfigurationError(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")

    made(0)
    return made
