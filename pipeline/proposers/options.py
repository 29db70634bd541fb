"""What proposers share: how large S^3 searches, when its surrogate is fitted, and what Optuna is told of a space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from fewstep.search_spaces.space import Space

# How often a proposer asks again where it is told what is known or impossible.
ATTEMPTS = 40
# Attributes of an Optuna trial.
POINT_ATTR, CANDIDATE_ATTR, ORIGIN_ATTR = "point", "candidate", "origin"
# How many examples it was fitted to, the former one's tau on the children that came since, and the seconds that fits
# and rankings took since the last one.
OnRefit = Callable[[int, float | None, float], None]


@dataclass(frozen=True)
class S3Options:
    """Sizes of the search. Without a `surrogate` (none) it is plain evolution.

    `across` is the share of proposals that are an elite of the nearest NFE with steps added or dropped, `local` that of
    moves of the continuous decisions alone around an elite. Few `children` of one generation: the more a surrogate may
    choose among, the more of its errors it chooses.
    """

    parents: int = 15
    children: int = 16
    generations: int = 1
    random_trials: int = 24
    explore: float = 0.2
    crossover: float = 0.4
    first_fit: int = 30
    growth: float = 1.3
    surrogate: str = "none"
    across: float = 0.15
    local: float = 0.2


class _Recorder:
    """A trial that remembers what could be asked."""

    def __init__(self) -> None:
        self.space: dict[str, BaseDistribution] = {}

    def suggest_float(self, name: str, low: float, high: float) -> float:
        self.space[name] = FloatDistribution(low, high)
        return 0.5 * (low + high)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.space[name] = CategoricalDistribution(choices)
        return choices[0]


def distributions(space: Space[Any]) -> dict[str, BaseDistribution]:
    """Every parameter that a member of the space can have."""
    recorder = _Recorder()
    space.suggest_all(recorder)
    return recorder.space


def milestone(number: int, options: S3Options) -> int:
    """The trial number at whose arrival the surrogate that serves trial `number` was fitted; 0 for none."""
    last, at = 0, options.first_fit
    while at <= number:
        last, at = at, math.ceil(at * options.growth)
    return last
