"""Schedules and quantisation configs in one space."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.search_spaces.genome import FEATURES, to_schedule
from fewstep.search_spaces.joint_space import JointSpace
from fewstep.search_spaces.quantization_space import QuantizationSpace
from fewstep.search_spaces.solver_space import SolverSpace

# A busy machine is no failure.
patient = settings(deadline=None)

SPACE = JointSpace(SolverSpace(-5.0, 4.0, (3, 4)), QuantizationSpace(4, 100))
seeds = st.integers(0, 2**32)
nfes = st.sampled_from((3, 4))


class _Fixed:
    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return float(self.values[name])

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.values[name]


@patient
@given(nfes, seeds)
def test_parameters_are_what_suggest_draws(nfe: int, seed: int) -> None:
    genome = SPACE.random(nfe, Random(seed))
    flat = SPACE.parameters(genome)
    # The two halves must not share a name, or one would overwrite the other.
    halves = SPACE.solver.parameters(genome.solver), SPACE.quantization.parameters(genome.config)
    assert len(flat) == sum(map(len, halves))
    rendered = SPACE.suggest(_Fixed(flat))
    assert rendered.config == genome.config
    again = SPACE.suggest(_Fixed(SPACE.parameters(rendered)))
    assert to_schedule(again.solver).steps == to_schedule(rendered.solver).steps
    assert again.nfe == genome.nfe == nfe


@patient
@given(nfes, nfes, seeds)
def test_variation_keeps_the_nfe_and_stays_in_both_spaces(nfe: int, other: int, seed: int) -> None:
    rng = Random(seed)
    a, b = SPACE.random(nfe, rng), SPACE.random(other, rng)
    mutated = SPACE.mutate(a, rng)
    assert mutated != a
    for child in (mutated, SPACE.cross(a, b, rng)):
        assert child.nfe == to_schedule(child.solver).nfe == nfe
        assert SPACE.quantization.member(child.config) == child.config


@patient
@given(nfes, seeds)
def test_features_follow_the_steps_and_carry_the_config(nfe: int, seed: int) -> None:
    rng = Random(seed)
    genome = SPACE.random(nfe, rng)
    features = SPACE.encode(genome)
    assert features.shape == (len(genome.solver.genes), FEATURES + SPACE.quantization.width)
    assert (features[:, FEATURES:] == features[0, FEATURES:]).all()
