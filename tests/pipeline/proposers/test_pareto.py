"""Fronts of several objectives."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.pipeline.proposers.pareto import Fronts, crowding, dominance, front, ordered, ranks

# A busy machine is no failure.
patient = settings(deadline=None)

points = st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=25)


@patient
@given(points)
def test_nothing_dominates_itself_and_no_two_dominate_each_other(values: list[tuple[int, ...]]) -> None:
    over = dominance(values)
    assert not (over & over.T).any()


@patient
@given(points)
def test_a_front_is_what_nothing_dominates_and_dominates_the_rest(values: list[tuple[int, ...]]) -> None:
    members, over = front(values), dominance(values)
    assert members
    assert not over[np.ix_(members, members)].any()
    for i in set(range(len(values))) - set(members):
        assert any(over[m, i] or values[m] == values[i] for m in members)
    assert len({values[m] for m in members}) == len(members)


@patient
@given(points)
def test_ranks_peel_off_one_front_after_the_other(values: list[tuple[int, ...]]) -> None:
    rank, over = ranks(values), dominance(values)
    for i, r in enumerate(rank):
        above = rank[over[:, i]]
        assert r == (above.max() + 1 if len(above) else 0)


@patient
@given(points, st.integers(1, 5))
def test_a_cut_front_is_part_of_the_whole_one(values: list[tuple[int, ...]], most: int) -> None:
    members, cut = front(values), front(values, most)
    assert set(cut) <= set(members)
    assert len(cut) == min(most, len(members))


@patient
@given(points)
def test_the_order_begins_with_the_front(values: list[tuple[int, ...]]) -> None:
    order, rank = ordered(values), ranks(values)
    assert sorted(order) == list(range(len(values)))
    assert list(rank[order]) == sorted(rank)


def test_a_new_end_of_the_front_comes_before_the_old_ones() -> None:
    values = [(5.0, 5.0), (1.0, 50.0), (50.0, 1.0), (4.0, 6.0), (0.5, 60.0)]
    assert ordered(values)[0] == 4


def test_the_ends_of_a_front_stand_alone_and_the_closest_goes_first() -> None:
    values = [(1.0, 100.0), (10.0, 10.0), (11.0, 9.0), (100.0, 1.0)]
    alone = crowding(values)
    assert np.isinf(alone[[0, 3]]).all()
    assert len(front(values, 3)) == 3
    assert {0, 3} <= set(front(values, 2))
    assert set(front(values, 3)) & {1, 2}


@patient
@given(points, st.randoms(use_true_random=False))
def test_fronts_kept_as_vectors_come_in_are_those_of_all_at_once(values: list[tuple[int, ...]], rng: Random) -> None:
    fronts = Fronts()
    for number in rng.sample(range(len(values)), len(values)):
        fronts.add(number, values[number])
    order = ordered(values)
    assert list(fronts) == order
    assert [fronts.place(number) for number in order] == list(range(len(values))) == list(range(len(fronts)))
