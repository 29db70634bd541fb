"""The jackknife's interval covers what it promises, and agrees with a bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.interval import frechet_interval, paired_difference
from fewstep.tasks.metrics.moments import Moments, merge_all

DIM = 4
SCALE = np.array([1.3, 0.8, 1.0, 0.6])
SHIFT = np.array([0.4, 0.0, -0.3, 0.2])
REFERENCE = FrechetReference(np.zeros(DIM), np.eye(DIM))
# Both Gaussians are diagonal, so the distance of infinitely many images is known.
TRUTH = float((SHIFT**2).sum() + ((SCALE - 1.0) ** 2).sum())


def samples(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)) * SCALE + SHIFT


def groups_of(X: np.ndarray, groups: int) -> list[Moments]:
    return [Moments.of(part) for part in np.array_split(X, groups)]


def coverage(count: int, groups: int, repeats: int = 100) -> float:
    hits = 0
    for seed in range(repeats):
        interval = frechet_interval(REFERENCE, groups_of(samples(count, seed), groups))
        assert interval is not None
        hits += interval.low <= TRUTH <= interval.high
    return hits / repeats


@pytest.mark.parametrize("groups", [5, 10, 20])
def test_coverage_is_near_95_percent(groups: int) -> None:
    assert 0.85 <= coverage(2000, groups) <= 1.0


def test_coverage_with_groups_of_unequal_size() -> None:
    hits = 0
    for seed in range(100):
        X = samples(2000, seed)
        groups = [Moments.of(part) for part in np.split(X, [1000, 1200, 1400, 1600, 1700, 1800, 1900])]
        interval = frechet_interval(REFERENCE, groups)
        assert interval is not None
        hits += interval.low <= TRUTH <= interval.high
    assert 85 <= hits <= 100


def test_agrees_with_a_bootstrap() -> None:
    X = samples(1000, 3)
    generator = np.random.default_rng(0)
    resampled = [REFERENCE.distance(Moments.of(X[generator.integers(0, len(X), len(X))])) for _ in range(300)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    interval = frechet_interval(REFERENCE, groups_of(X, 20))
    assert interval is not None
    assert 0.5 < (interval.high - interval.low) / (high - low) < 2.0


def test_value_is_the_distance_of_everything_together() -> None:
    groups = groups_of(samples(500, 0), 7)
    interval = frechet_interval(REFERENCE, groups)
    assert interval is not None
    assert interval.value == REFERENCE.distance(merge_all(groups))
    assert 0.0 <= interval.low <= interval.value <= interval.high
    wider = frechet_interval(REFERENCE, groups, level=0.99)
    assert wider is not None
    assert wider.high > interval.high


def test_equal_groups_give_the_textbook_jackknife() -> None:
    groups = groups_of(samples(600, 0), 6)
    left_out = np.array([REFERENCE.distance(merge_all(groups[:i] + groups[i + 1 :])) for i in range(6)])
    # The textbook spreads the left-out values around their own mean.
    error = np.sqrt(5 / 6 * ((left_out - left_out.mean()) ** 2).sum())
    interval = frechet_interval(REFERENCE, groups)
    assert interval is not None
    assert interval.high - interval.value == pytest.approx(2.5705818 * error, rel=1e-6)


def test_more_images_narrow_the_interval_and_two_groups_give_none() -> None:
    few = frechet_interval(REFERENCE, groups_of(samples(500, 0), 10))
    many = frechet_interval(REFERENCE, groups_of(samples(20_000, 0), 10))
    assert few is not None
    assert many is not None
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert frechet_interval(REFERENCE, groups_of(samples(500, 0), 2)) is None
    assert frechet_interval(REFERENCE, []) is None


def test_pairing_sees_a_difference_that_the_single_intervals_hide() -> None:
    X = samples(1000, 0)
    first, second = groups_of(X, 10), groups_of(X * 1.02, 10)
    a, b = frechet_interval(REFERENCE, first), frechet_interval(REFERENCE, second)
    difference = paired_difference(REFERENCE, second, first)
    assert a is not None
    assert b is not None
    assert difference is not None
    assert difference.value == pytest.approx(b.value - a.value)
    assert difference.low > 0.0
    assert a.high > b.low
    backwards = paired_difference(REFERENCE, first, second)
    assert backwards is not None
    assert backwards == pytest.approx((-difference.value, -difference.high, -difference.low))


def test_paired_coverage() -> None:
    factor = 1.1
    truth = float(((factor * SHIFT) ** 2).sum() + ((factor * SCALE - 1.0) ** 2).sum()) - TRUTH
    hits = 0
    for seed in range(100):
        X = samples(1000, seed)
        difference = paired_difference(REFERENCE, groups_of(factor * X, 10), groups_of(X, 10))
        assert difference is not None
        hits += difference.low <= truth <= difference.high
    assert 85 <= hits <= 100


def test_what_does_not_fit_is_refused() -> None:
    groups = groups_of(samples(100, 0), 4)
    with pytest.raises(ConfigurationError, match="counts differ"):
        paired_difference(REFERENCE, groups, groups[:3])
    assert paired_difference(REFERENCE, groups[:2], groups[:2]) is None
    with pytest.raises(ConfigurationError, match=r"level must lie.*1\.5"):
        frechet_interval(REFERENCE, groups, level=1.5)
