"""Intervals for the Frechet distance from group moments alone: the delete-a-group jackknife.

The images are kept as G groups, each as moments; the distance is computed again G times with one group left
out. That is G + 1 distances and O(G D^2) for the moments, where a bootstrap would need the features and
hundreds of distances. Groups may differ in size.

The intervals say how the distance at this image count varies with the sampled images. They take the reference
as fixed, and they leave the small-sample bias of the Frechet distance where it is: figures at equal image
counts compare, others do not.

Source: Busing, Meijer, van der Leeden 1999, "Delete-m jackknife for unequal m", equations 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.moments import Moments, merge_all

MIN_GROUPS = 3


class Interval(NamedTuple):
    """A value and the ends of its interval, in the value's units."""

    value: float
    low: float
    high: float


def frechet_interval(reference: FrechetReference, groups: Sequence[Moments], level: float = 0.95) -> Interval | None:
    """Distance of all groups together, with its interval; None where there are fewer than 3 groups.

    `level` is the coverage in (0, 1). The interval is value ± t(G - 1) times the standard error, cut at 0.
    Raises ConfigurationError for another level, or as `FrechetReference.distance` does.
    """
    if len(groups) < MIN_GROUPS:
        return None
    value, left_out = _distances(reference, groups)
    half = _half_width(value, left_out, [group.count for group in groups], level)
    return Interval(value, max(0.0, value - half), value + half)


def paired_difference(
    reference: FrechetReference, first: Sequence[Moments], second: Sequence[Moments], level: float = 0.95
) -> Interval | None:
    """Distance of `first` minus distance of `second`, with its interval; None below 3 groups.

    Group i of both lists must come from the same starting noise: what the noise does to both then cancels,
    and the interval is far narrower than the two single ones suggest.
    Raises ConfigurationError where the groups do not match, or as `frechet_interval` does.
    """
    counts = [group.count for group in first]
    if counts != [group.count for group in second]:
        raise ConfigurationError("a paired difference needs the same groups on both sides; their counts differ")
    if len(first) < MIN_GROUPS:
        return None
    value_a, left_out_a = _distances(reference, first)
    value_b, left_out_b = _distances(reference, second)
    value = value_a - value_b
    half = _half_width(value, left_out_a - left_out_b, counts, level)
    return Interval(value, value - half, value + half)


def sums_interval(
    statistic: Callable[[np.ndarray[tuple[int], np.dtype[np.float64]]], float],
    groups: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
    counts: Sequence[int],
    level: float = 0.95,
    least: float = 0.0,
) -> Interval | None:
    """A statistic of summed measures (M,), with its interval; None below 3 groups.

    `groups` are the sums of G groups of images, `counts` how many images are in each. Cut at `least`, the smallest
    value that there is. Raises ConfigurationError for another level.
    """
    if len(groups) < MIN_GROUPS:
        return None
    total = np.sum(groups, axis=0)
    value = statistic(total)
    half = _half_width(value, np.array([statistic(total - g) for g in groups]), list(counts), level)
    return Interval(value, max(least, value - half), value + half)


def paired_sums(
    statistic: Callable[[np.ndarray[tuple[int], np.dtype[np.float64]]], float],
    first: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
    second: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
    counts: Sequence[int],
    level: float = 0.95,
) -> Interval | None:
    """A statistic of the sums of `first` less that of `second`, group by group of the same noise; None below 3 groups.

    `counts` are how many images are in each group, of both sides. Raises ConfigurationError for another level.
    """
    if len(first) < MIN_GROUPS:
        return None
    totals = [np.sum(groups, axis=0) for groups in (first, second)]
    value = statistic(totals[0]) - statistic(totals[1])
    left_out = [statistic(totals[0] - a) - statistic(totals[1] - b) for a, b in zip(first, second, strict=True)]
    half = _half_width(value, np.array(left_out), list(counts), level)
    return Interval(value, value - half, value + half)


def share_interval(count: int, of: int, level: float = 0.95) -> Interval:
    """`count` / `of` with Wilson's interval for a share (Wilson 1927), which stays within [0, 1].

    Raises ConfigurationError for another level, or where `count` is not within 0 and `of`.
    """
    if not (0 <= count <= of and of > 0 and 0.0 < level < 1.0):
        raise ConfigurationError(f"a share needs 0 <= count <= of and a level in (0, 1); got {count} of {of}, {level}")
    import scipy.stats  # takes a second, and a forecast needs none

    share, z = count / of, float(scipy.stats.norm.ppf((1.0 + level) / 2.0))
    centre = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * float(np.sqrt(share * (1 - share) / of + z * z / (4 * of * of)))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _distances(
    reference: FrechetReference, groups: Sequence[Moments]
) -> tuple[float, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Distance of everything, and the G distances with one group left out."""
    total = merge_all(groups)
    return reference.distance(total), np.array([reference.distance(total.without(g)) for g in groups])


def _half_width(
    value: float, left_out: np.ndarray[tuple[int], np.dtype[np.float64]], counts: list[int], level: float
) -> float:
    """Student's t with G - 1 degrees of freedom times the jackknife's standard error."""
    import scipy.stats

    if not 0.0 < level < 1.0:
        raise ConfigurationError(f"level must lie between 0 and 1; got {level}")
    G = len(counts)
    h = sum(counts) / np.array(counts, np.float64)
    pseudo = h * value - (h - 1.0) * left_out
    centre = G * value - ((1.0 - 1.0 / h) * left_out).sum()
    variance = ((pseudo - centre) ** 2 / (h - 1.0)).mean()
    return float(scipy.stats.t.ppf((1.0 + level) / 2.0, G - 1) * np.sqrt(variance))
