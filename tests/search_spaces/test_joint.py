"""Schedules and quantisation configs in one space."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ScheduleError
from fewstep.search_spaces.joint import ProductSpace
from fewstep.search_spaces.point import JointPoint, QuantizationPoint, SchedulePoint
from fewstep.search_spaces.quantization.space import QuantizationSpace
from fewstep.search_spaces.schedule.genome import FEATURES, to_schedule
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.search_spaces.trials import Fixed

# A busy machine is no failure.
patient = settings(deadline=None)

SOLVER, QUANTIZATION = ScheduleSpace(-5.0, 4.0, (3, 4)), QuantizationSpace(4, 100)
SPACE = ProductSpace((SOLVER, QUANTIZATION))
seeds = st.integers(0, 2**32)
nfes = st.sampled_from((3, 4))


@patient
@given(nfes, seeds)
def test_parameters_are_what_suggest_draws(nfe: int, seed: int) -> None:
    genome = SPACE.random(nfe, Random(seed))
    flat = SPACE.parameters(genome)
    # The two halves must not share a name, or one would overwrite the other.
    halves = SOLVER.parameters(genome[0]), QUANTIZATION.parameters(genome[1])
    assert len(flat) == sum(map(len, halves))
    rendered = SPACE.suggest(Fixed(flat))
    assert rendered[1] == genome[1]
    again = SPACE.suggest(Fixed(SPACE.parameters(rendered)))
    assert to_schedule(again[0]).steps == to_schedule(rendered[0]).steps
    assert SPACE.nfe(again) == SPACE.nfe(genome) == nfe


@patient
@given(nfes, nfes, seeds)
def test_variation_keeps_the_nfe_and_stays_in_both_spaces(nfe: int, other: int, seed: int) -> None:
    rng = Random(seed)
    a, b = SPACE.random(nfe, rng), SPACE.random(other, rng)
    mutated = SPACE.mutate(a, rng)
    assert mutated != a
    for child in (mutated, SPACE.cross(a, b, rng)):
        assert SPACE.nfe(child) == SPACE.point(child).nfe == to_schedule(child[0]).nfe == nfe
        assert QUANTIZATION.member(child[1]) == child[1]


@patient
@given(nfes, seeds)
def test_features_follow_the_steps_and_carry_the_config(nfe: int, seed: int) -> None:
    rng = Random(seed)
    genome = SPACE.random(nfe, rng)
    features = SPACE.encode(genome)
    assert features.shape == (len(genome[0].genes), FEATURES + QUANTIZATION.width)
    assert (features[:, FEATURES:] == features[0, FEATURES:]).all()


@patient
@given(nfes, seeds)
def test_a_point_has_both_parts_and_leads_back_to_the_member(nfe: int, seed: int) -> None:
    genome = SPACE.random(nfe, Random(seed))
    point = SPACE.point(genome)
    assert isinstance(point, JointPoint)
    assert [part.kind for part in point.parts] == ["schedule", "quantization"]
    assert SPACE.point(SPACE.genome(point)).hash == point.hash


def test_a_part_that_is_kept_is_in_every_member_and_asked_for_in_every_point() -> None:
    rng = Random(0)
    kept, other = (SOLVER.point(SOLVER.random(3, rng)) for _ in range(2))
    space = ProductSpace((QUANTIZATION,), (kept,))
    genome = space.random(4, rng)
    for member in (genome, space.mutate(genome, rng), space.cross(genome, space.random(4, rng), rng)):
        point = space.point(member)
        assert point.part(SchedulePoint) == kept
        assert space.nfe(member) == point.nfe == 3
        assert space.genome(point) == member
    assert space.parameters(genome) == QUANTIZATION.parameters(genome[0])
    for wrong in (JointPoint(members=(other, QuantizationPoint(config=genome[0]))), QUANTIZATION.point(genome[0])):
        with pytest.raises(ScheduleError, match="schedule that is kept"):
            space.genome(wrong)
