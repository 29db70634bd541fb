"""What a space gets for its decisions: members, moves, crosses, features and neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.search_spaces.decisions import Choice, Decision, Range
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
from fewstep.search_spaces.edit.space import EditSpace
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.schedule.presets import preset
from fewstep.search_spaces.space import DecisionSpace
from fewstep.search_spaces.trials import Fixed

# A busy machine is no failure.
patient = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32)


class DishPoint(Point):
    """A point of the smallest space there could be."""

    kind: Literal["dish"] = "dish"
    salt: float
    minutes: int
    pan: str
    eggs: int


class DishSpace(DecisionSpace[DishPoint]):
    """Every sort of decision once."""

    decisions: Mapping[str, Decision] = {  # type: ignore[assignment]
        "salt": Range(0.1, 10.0, log=True),
        "minutes": Range(1, 20, whole=True),
        "pan": Choice(("iron", "clay", "steel")),
        "eggs": Choice((2, 3, 4, 6)),
    }

    def config(self, values: Mapping[str, Any]) -> DishPoint:
        return DishPoint(**values)

    def values(self, genome: DishPoint) -> dict[str, Any]:
        return {name: decision.nearest(getattr(genome, name)) for name, decision in self.decisions.items()}

    def point(self, genome: DishPoint) -> DishPoint:
        return genome

    def genome(self, point: Point) -> DishPoint:
        assert isinstance(point, DishPoint)
        return point


SCHEDULE = preset("unipc-2-bh2", (-5.0, -3.0, -1.0, 1.0, 3.0))
EDIT = EditConfig(step=-1.0, boundary=BoundaryConfig(images=100))
SPACES: dict[str, DecisionSpace[Any]] = {
    "dish": DishSpace(),
    "edit": EditSpace((-2.0, -1.0, 0.0), 100, EDIT, (SCHEDULE,)),
    "little of an edit": EditSpace((-2.0, -1.0), 100, EDIT, kept=("inversion", "generation", "strength", "boundary")),
}
spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def assert_member(space: DecisionSpace[Any], genome: Any) -> None:
    """Every decision is one of its options or in its range, and nothing else is in the member."""
    for name, decision in space.decisions.items():
        value = space.values(genome)[name]
        if isinstance(decision, Choice):
            assert value in decision.options
        else:
            assert decision.low <= value <= decision.high
            assert not decision.whole or isinstance(value, int)
    assert space.member(genome) == genome
    assert space.genome(space.point(genome)) == genome


@spaces
@patient
@given(seed=seeds)
def test_what_is_drawn_moved_and_crossed_stays_in_the_space(space: DecisionSpace[Any], seed: int) -> None:
    rng = Random(seed)
    a, b = space.random(3, rng), space.random(4, rng)
    crossed = space.cross(a, b, rng)
    for genome in (a, b, space.mutate(a, rng), space.mutate(b, rng, 0.9), crossed):
        assert_member(space, genome)
    ours = space.values(crossed)
    assert all(ours[name] in (space.values(a)[name], space.values(b)[name]) or _settled(space, name) for name in ours)
    assert space.cross(a, a, rng) == a


def _settled(space: DecisionSpace[Any], name: str) -> bool:
    """Whether a decision has no say in some members, and there falls back to what it always is."""
    silent = ("strength_z", "strength_h", "rescale", "eta_window", "inversion_calls", "generation_calls")
    return isinstance(space, EditSpace) and name in silent


@spaces
@patient
@given(seed=seeds)
def test_a_mutant_is_another_member(space: DecisionSpace[Any], seed: int) -> None:
    rng = Random(seed)
    genome = space.random(3, rng)
    for rate in (None, 1e-9, 1.0):
        child = space.mutate(genome, rng, rate)
        assert space.point(child).hash != space.point(genome).hash
        assert space.values(child) != space.values(genome)


@spaces
@patient
@given(seed=seeds)
def test_parameters_are_what_suggest_draws(space: DecisionSpace[Any], seed: int) -> None:
    genome = space.random(3, Random(seed))
    parameters = space.parameters(genome)
    assert parameters.keys() == space.decisions.keys()
    assert space.suggest(Fixed(parameters)) == space.from_parameters(parameters) == genome
    assert space.flat


@spaces
@patient
@given(seed=seeds)
def test_features_have_one_width_and_lie_in_reach(space: DecisionSpace[Any], seed: int) -> None:
    rng = Random(seed)
    genome = space.random(3, rng)
    features = space.encode(genome)
    assert features.shape == (1, sum(decision.width for decision in space.decisions.values()))
    assert features.dtype == np.float32
    assert np.abs(features).max() <= 1
    assert features.tobytes() != space.encode(space.mutate(genome, rng)).tobytes()


@spaces
@patient
@given(seed=seeds)
def test_neighbours_differ_in_one_named_decision(space: DecisionSpace[Any], seed: int) -> None:
    genome = space.random(3, Random(seed))
    own, names = space.values(genome), tuple(space.decisions)[::2]
    found = space.neighbours(genome, names)
    assert len({space.point(g).hash for g in found} | {space.point(genome).hash}) == len(found) + 1
    for other in found:
        assert_member(space, other)
        values = space.values(other)
        changed = {name for name in own if values[name] != own[name]}
        assert changed & set(names)
        assert all(name in names or _settled(space, name) for name in changed)
    assert space.neighbours(genome, ("nothing that is searched",)) == []


def test_neighbours_of_numbers_are_near_and_of_names_are_all_others() -> None:
    dish = DishPoint(salt=1.0, minutes=10, pan="clay", eggs=3)
    found = DishSpace().neighbours(dish, ("salt", "minutes", "pan", "eggs"))
    assert [(d.salt, d.minutes, d.pan, d.eggs) for d in found] == [
        (0.5, 10, "clay", 3),
        (2.0, 10, "clay", 3),
        (1.0, 9, "clay", 3),
        (1.0, 11, "clay", 3),
        (1.0, 10, "iron", 3),
        (1.0, 10, "steel", 3),
        (1.0, 10, "clay", 2),
        (1.0, 10, "clay", 4),
    ]
