"""Paired differences of edits: what they are of, and that their intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.tables.edit_pairs import Outcomes, ahead, shares_apart
from fewstep.errors import ConfigurationError
from fewstep.tasks.editing.measures import balance


def drawn(seed: int, n: int = 120, shift: float = 0.0) -> tuple[Outcomes, Outcomes]:
    """Two edits of the same images, which mostly agree; the first has `shift` more identity and success."""
    rng = np.random.default_rng(seed)
    ease, identity = rng.random(n), rng.normal(0.4, 0.1, n)
    found = []
    for gain in (shift, 0.0):
        hits = ease + rng.normal(0, 0.05, n) < 0.6 + gain
        found.append(Outcomes(hits, identity + gain + rng.normal(0, 0.02, n)))
    return found[0], found[1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_differences_are_of_the_figures_and_change_sign_with_the_order(seed: int) -> None:
    first, second = drawn(seed, shift=0.05)
    there, back = ahead(first, second), ahead(second, first)
    assert there.success.value == pytest.approx(first.hits.mean() - second.hits.mean())
    assert there.identity.value == pytest.approx(first.identity.mean() - second.identity.mean())
    expected = balance(first.hits.mean(), first.identity.mean()) - balance(second.hits.mean(), second.identity.mean())
    assert there.balance.value == pytest.approx(expected)
    for name in ("success", "identity", "balance"):
        one, other = getattr(there, name), getattr(back, name)
        assert one.low <= one.value <= one.high
        assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-12)


def test_intervals_cover_the_true_difference() -> None:
    """Of 300 draws about 285 should; the true difference is that of a large draw."""
    true = ahead(*drawn(999_999, n=400_000, shift=0.05))
    found = [ahead(*drawn(seed, shift=0.05)) for seed in range(300)]
    for name in ("success", "identity"):
        value = getattr(true, name).value
        covered = sum(getattr(f, name).low <= value <= getattr(f, name).high for f in found)
        assert 270 <= covered <= 298
    gaps = [f.balance for f in found]
    expected = float(np.mean([g.value for g in gaps]))
    assert 270 <= sum(g.low <= expected <= g.high for g in gaps) <= 298


def test_pairing_narrows_and_agreement_leaves_a_doubt() -> None:
    first, second = drawn(3)
    apart = shares_apart(first.hits, second.hits)
    p, n = float(first.hits.mean()), len(first.hits)
    assert apart.high - apart.low < 0.7 * 2 * 1.96 * (2 * p * (1 - p) / n) ** 0.5
    same = shares_apart(first.hits, first.hits)
    assert same.value == 0
    assert same.low < 0 < same.high


def test_other_images_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="got 120 and 60"):
        ahead(drawn(0)[0], drawn(0, n=60)[0])
