"""The table of siblings is told right: a perfect ranking is perfect, a reversed one reversed, a blind one between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from benchmarks.siblings.__main__ import TABLE, Family, families, summary


def _row(number: int, **more: Any) -> dict[str, Any]:
    return {"number": number, "truth": 1.0 + number, "judge": 2.0 + 2 * number, "told": False, **more}


FAMILY = Family(
    elite={"truth": 2.0, "judge": 4.0, "nfe": 4},
    siblings=[_row(i, paired_32=float(i)) for i in range(20)],
    brood=[_row(i, takers=["staged lin_125"] if i < 5 else ["paired for staged_125"]) for i in range(10)],
    trials=[],
)


def test_figures_of_a_ranking_are_those_of_what_it_takes() -> None:
    best = FAMILY.figures(np.arange(20.0))
    assert (best["tau"], best["half"]) == pytest.approx((1, 1))
    assert np.exp(best["five"]) == pytest.approx(np.prod([1, 2, 3, 4, 5]) ** 0.2 / 2)
    assert np.exp(best["best"]) == pytest.approx(0.5)
    assert best["judge"] == pytest.approx(best["five"])
    worst = FAMILY.figures(-np.arange(20.0))
    assert worst["tau"] == pytest.approx(-1)
    assert best["five"] < FAMILY.at_random["five"] < worst["five"]
    assert FAMILY.figures(np.arange(20.0), rows=range(10, 20))["best"] == pytest.approx(np.log(11 / 2))


def test_what_was_not_measured_of_a_family_is_left_out() -> None:
    assert FAMILY.values("lin_125") is None
    assert FAMILY.taken("staged lin_250") is None
    taken = FAMILY.taken("staged lin_125")
    assert taken is not None
    assert taken["best"] == pytest.approx(np.log(0.5))


def test_means_have_the_interval_of_student() -> None:
    found = summary([{"tau": v, "five": np.log(v)} for v in (0.2, 0.4, 0.6)], "x_")
    half = student.ppf(0.975, 2) * 0.2 / np.sqrt(3)
    assert (found["x_tau"], found["x_tau_high"]) == pytest.approx((0.4, 0.4 + half))
    assert found["x_five"] == pytest.approx((0.2 * 0.4 * 0.6) ** (1 / 3))


def test_the_committed_table_can_be_read_and_is_small() -> None:
    known = families(TABLE)
    assert TABLE.stat().st_size < 1_000_000
    assert all(len(f.siblings) == 60 and f.trials and f.values("paired_32") is not None for f in known)
    assert len({(f.elite["model"], f.elite["nfe"], f.elite["elite"]) for f in known}) == len(known)
