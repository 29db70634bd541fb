"""Moves of the continuous decisions alone, around the best member found: CMA-ES (the `cmaes` package, 1604.00772).

Evolution changes one decision or the other; times and coefficients act together. What is told to CMA-ES are the
members that share all discrete decisions with the best one, in the order in which they were proposed, whoever
proposed them: so the move is a function of the search's history, and a resumed search repeats it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cmaes import CMA
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from fewstep.search_spaces.genome import Genome
from fewstep.search_spaces.solver_space import SolverSpace

Array = npt.NDArray[np.float64]
SPREAD = 0.04
"""First standard deviation, as a share of each decision's range."""


def local_move(
    space: SolverSpace,
    distributions: Mapping[str, BaseDistribution],
    members: Sequence[tuple[FrozenTrial, Genome]],
    rung: int,
    seed: str,
) -> Genome | None:
    """A genome near the best of `members` (all of one NFE) by their values at `rung`; None where none has a value.

    What moves are its parameters that are numbers (times as logits of their gaps), within their `distributions`.
    """
    judged = [(t, g) for t, g in members if rung in t.intermediate_values]
    if not judged:
        return None
    best = min(judged, key=lambda entry: (entry[0].intermediate_values[rung], entry[0].number))[1]
    centre = space.parameters(best)
    ranges = _ranges(distributions, centre)
    names = list(ranges)
    if len(names) < 2:
        return None
    low, high = (np.array([ranges[n][i] for n in names]) for i in (0, 1))
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    optimizer = CMA(_unit(centre, names, low, high), SPREAD, bounds=np.tile([0.0, 1.0], (len(names), 1)), seed=key)
    alike = []
    for trial, genome in judged:
        flat = space.parameters(genome)
        if _discrete(flat, names) == _discrete(centre, names):
            alike.append((_unit(flat, names, low, high), trial.intermediate_values[rung]))
    size = optimizer.population_size
    for start in range(0, len(alike) - size + 1, size):
        optimizer.tell(alike[start : start + size])
    found = dict(zip(names, low + optimizer.ask() * (high - low), strict=True))
    return space.from_parameters(centre | {name: float(value) for name, value in found.items()})


def _ranges(distributions: Mapping[str, BaseDistribution], flat: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of the numbers among a genome's parameters."""
    floats = {n: d for n, d in distributions.items() if n in flat and isinstance(d, FloatDistribution)}
    return {name: (d.low, d.high) for name, d in floats.items() if d.high > d.low and _matters(name, flat)}


def _matters(name: str, flat: Mapping[str, Any]) -> bool:
    """A coefficient acts on linear relaxation alone."""
    kind, _, step = name.partition(".")
    return kind != "coefficient" or flat[f"relaxation.{step}"] == "linear"


def _unit(flat: Mapping[str, Any], names: list[str], low: Array, high: Array) -> Array:
    return np.clip((np.array([flat[n] for n in names]) - low) / (high - low), 0.0, 1.0)


def _discrete(flat: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    return {k: v for k, v in flat.items() if k not in names and not k.startswith("coefficient.")}
