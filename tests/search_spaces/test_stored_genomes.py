"""Genomes that are read from a stored point's text are those of the point."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.search_spaces.point import as_point, parse_point
from fewstep.search_spaces.schedule.genome import to_schedule
from fewstep.search_spaces.schedule.solver_space import EXTRA_DECISIONS, Extras
from fewstep.search_spaces.schedule.space import ScheduleSpace

PLAIN = ScheduleSpace(-5.0, 4.6, (1, 2, 5, 8))
FULL = ScheduleSpace(-5.0, 4.6, (1, 2, 5, 8), Extras(frozenset(EXTRA_DECISIONS), 3, (1.0, 8.0)))


@given(st.integers(0, 10_000), st.sampled_from(PLAIN.nfes), st.sampled_from((PLAIN, FULL)))
def test_a_text_gives_the_genome_of_its_point(seed: int, nfe: int, space: ScheduleSpace) -> None:
    rng = Random(seed)
    member = space.mutate(space.random(nfe, rng), rng)
    point = as_point(to_schedule(member, name='a "],"first_call": name'))
    for text in (point.to_json(), json.dumps(json.loads(point.to_json()))):
        found, whole = space.stored(text), space.genome(parse_point(text))
        assert found == whole
        assert hash(found) == hash(whole)
        assert to_schedule(found).to_json() == to_schedule(whole).to_json()


@pytest.mark.parametrize("seed", range(5))
def test_members_are_alike_where_their_discrete_decisions_are_equal(seed: int) -> None:
    rng = Random(seed)
    first = FULL.random(5, rng)
    others = [FULL.mutate(first, rng, 0.05) for _ in range(40)] + [FULL.random(5, rng)]
    moved = FULL.at_vector(first, FULL.to_vector(first) * 0.9)
    for other in (first, moved, *others):
        assert FULL.alike(first, other) == (FULL.discrete(first) == FULL.discrete(other))
