"""Two edits of the same images: how far one is ahead of the other, with intervals that the pairing narrows.

Notation: n images; hits (n,) whether an edit is a success, identity (n,). A difference is the first less the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.errors import ConfigurationError
from fewstep.tasks.editing.measures import LEVEL_Z, balance, mean
from fewstep.tasks.metrics.interval import Interval

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What an edit did to each of n images."""

    hits: npt.NDArray[np.bool_]
    identity: Array

    @property
    def balance(self) -> float:
        """The harmonic mean of success and identity over the images."""
        return balance(float(self.hits.mean()), float(self.identity.mean()))


@dataclass(frozen=True)
class Ahead:
    """How far one edit is ahead of another, 95% intervals."""

    success: Interval
    identity: Interval
    balance: Interval


def ahead(first: Outcomes, second: Outcomes) -> Ahead:
    """The first less the second; ConfigurationError where they are not of equally many images."""
    if len(first.hits) != len(second.hits):
        raise ConfigurationError(
            f"a paired comparison needs the same images on both sides, got {len(first.hits)} and {len(second.hits)}"
        )
    return Ahead(
        shares_apart(first.hits, second.hits), mean(first.identity - second.identity), _balances_apart(first, second)
    )


def shares_apart(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Interval:
    """Difference of two shares of the same images, with the 95% interval of Bonett and Price (2012), which adds one
    image to either kind of disagreement and so is of use where there is none."""
    n = len(first)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    p, q = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = LEVEL_Z * float(np.sqrt((p + q - (p - q) ** 2) / (n + 2)))
    return Interval((gained - lost) / n, max(-1.0, p - q - half), min(1.0, p - q + half))


def _balances_apart(first: Outcomes, second: Outcomes) -> Interval:
    """Difference of two balances with the delete-one jackknife's 95% interval."""
    value, n = first.balance - second.balance, len(first.hits)
    left_out = _balances_without_one(first) - _balances_without_one(second)
    half = LEVEL_Z * float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    return Interval(value, value - half, value + half)


def _balances_without_one(outcomes: Outcomes) -> Array:
    """(n,) the balance with each image left out."""
    n = len(outcomes.hits)
    success = (outcomes.hits.sum() - outcomes.hits) / (n - 1)
    identity = (outcomes.identity.sum() - outcomes.identity) / (n - 1)
    return np.array([balance(float(s), float(i)) for s, i in zip(success, identity, strict=True)], np.float64)
