"""The ladder: who climbs, and what each rung costs."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from fewstep.pipeline.problems.model import ladder
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.sizes import sized
from fewstep.pipeline.trial import promoted

values = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=40, unique=True).map(sorted)
shares = st.floats(0.01, 1.0)


@given(values, shares)
def test_of_all_values_exactly_the_best_share_climbs(seen: list[float], keep: float) -> None:
    climbing = {v for v in seen if promoted(v, seen, keep)}
    assert climbing == set(sorted(seen)[: max(1, math.ceil(keep * len(seen)))])


@given(values, shares)
def test_the_best_always_climbs_and_a_better_one_never_loses_to_a_worse(seen: list[float], keep: float) -> None:
    assert promoted(min(seen), seen, keep)
    flags = [promoted(v, seen, keep) for v in sorted(seen)]
    assert flags == sorted(flags, reverse=True)


@given(values)
def test_with_everything_kept_everything_climbs(seen: list[float]) -> None:
    assert all(promoted(v, seen, 1.0) for v in seen)


@given(values, shares, shares)
def test_a_greater_share_lets_more_through(seen: list[float], a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert all(promoted(v, seen, high) for v in seen if promoted(v, seen, low))


@given(st.integers(0, 2**40), st.sampled_from(["auto", "distance", "frechet", "none"]))
def test_the_rungs_of_a_search_share_their_noise_and_finals_and_report_have_their_own(seed: int, by: str) -> None:
    screen, judge, finals, report = ladder(sized(SearchSettings.build(model="m", seed=seed, screen=by)))
    assert screen.seed == judge.seed == seed
    assert len({seed, finals.seed, report.seed}) == 3
    assert screen.images <= judge.images <= finals.images <= report.images
    names = {"auto": "screen", "distance": "distance", "frechet": "look", "none": "frechet"}
    assert [r.name for r in (screen, judge, finals, report)] == [names[by], "frechet", "finals", "report"]
    assert [r.metric for r in (screen, judge)] == [{"auto": "paired", "distance": by}.get(by, "frechet"), "frechet"]
