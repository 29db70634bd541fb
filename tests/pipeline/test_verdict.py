"""What is said of a search first: no more than the report's images can tell."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from fewstep.pipeline.reports.rows import SearchedRow
from fewstep.pipeline.reports.verdict import best_stock, verdict
from fewstep.tasks.metrics.interval import Interval

PRESET, OWN = "preset:dpmpp-3m/uniform-t", "own:EulerDiscreteScheduler"
values = st.floats(0.01, 100)
intervals = st.tuples(st.floats(-50, 50), st.floats(0, 20), st.floats(0, 20)).map(
    lambda t: Interval(t[0], t[0] - t[1], t[0] + t[2])
)


def _row(value: float, origin: str, found: bool = False, half: float | None = None) -> SearchedRow:
    low, high = (None, None) if half is None else (value - half, value + half)
    return SearchedRow("m", origin, 5, "fid", value, low, high, 2500, "s", found, origin)


@given(values, values, intervals, st.sampled_from([PRESET, OWN]))
def test_better_is_said_only_where_the_paired_interval_leaves_out_0(
    found: float, stock: float, difference: Interval, origin: str
) -> None:
    told = verdict(5, 1000, _row(found, "s3", True), _row(stock, origin), difference)
    assert told.startswith("NFE 5: ")
    assert origin.removeprefix("preset:") in told
    assert ("no difference that 2,500 images can tell" in told) == (difference.low <= 0 <= difference.high)
    assert ("%" in told) == (difference.high < 0)
    assert ("no schedule better than" in told) == (difference.low > 0)
    if difference.high < 0:
        assert f"{found / stock:.0%} of " in told


@given(values, values, st.none() | values)
def test_without_a_paired_difference_their_own_intervals_must_not_meet(
    found: float, stock: float, half: float | None
) -> None:
    told = verdict(5, 1000, _row(found, "s3", True, half), _row(stock, PRESET, half=half), None)
    apart = half is not None and abs(found - stock) > 2 * half
    if half is None or abs(abs(found - stock) - 2 * half) > 1e-9:
        assert ("no difference" in told) == (not apart)


@given(st.sampled_from([PRESET, OWN]), st.none() | intervals)
def test_a_stock_sampler_is_never_said_to_be_found(origin: str, difference: Interval | None) -> None:
    stock = _row(7.8, origin, True)
    for other in (stock, _row(7.0, PRESET)):
        told = verdict(8, 30_000, stock, other, difference)
        assert re.match(
            rf"NFE 8: no schedule better than {re.escape(origin.removeprefix('preset:'))} \(7.8\) was", told
        )
        assert "30,000" in told
        assert "%" not in told


def test_the_best_of_stock_is_the_own_scheduler_s_too_and_no_preset_that_saves_a_call() -> None:
    rows = [_row(1.0, "s3", True), _row(2.0, "analytic:ddim/karras"), _row(4.0, PRESET), _row(3.0, OWN)]
    stock = best_stock(rows)
    assert stock is rows[3]
    assert "33% of the model's own scheduler's 3" in verdict(5, 1, rows[0], stock, Interval(-2, -3, -1))
    assert best_stock(rows[:2]) is None
    assert "nothing stock" in verdict(5, 1, rows[0], None, None)
    assert "larger --budget" in verdict(5, 1, None, stock, None)
