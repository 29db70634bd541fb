"""The space of quantisation configs: members, their parameters, and one hash for one behaviour."""

from __future__ import annotations

from random import Random
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.decisions import Choice, Range
from fewstep.search_spaces.quantization import COVERAGES, MOST_BITS, PROCEDURES, QuantizationConfig, named
from fewstep.search_spaces.quantization.space import QuantizationSpace

# A busy machine is no failure.
patient = settings(deadline=None)

SPACES = [QuantizationSpace(5), QuantizationSpace(1, 0), QuantizationSpace(8, 2), QuantizationSpace(100, 20_000)]
spaces = st.sampled_from(SPACES)
seeds = st.integers(0, 2**32)
NAMED = [
    named(f"w{w}a{a}-{p}-{c}")
    for w in (3, 4, 8)
    for a in (6, 8)
    for p in PROCEDURES
    for c in COVERAGES
    if w < MOST_BITS or p != "mixed"
]


ADAROUND = {"solver": "adaround"}


class _Fixed:
    """A trial that answers from a mapping, and checks that the answers are possible."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values, self.asked = values, set[str]()

    def suggest_float(self, name: str, low: float, high: float) -> float:
        self.asked.add(name)
        value = float(self.values[name])
        assert low <= value <= high, name
        return value

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked.add(name)
        assert self.values[name] in choices, name
        return self.values[name]


@patient
@given(spaces, seeds)
def test_parameters_are_what_suggest_draws(space: QuantizationSpace, seed: int) -> None:
    config = space.random(0, Random(seed))
    trial = _Fixed(space.parameters(config))
    again = space.suggest(trial)
    assert again == config
    assert again.hash == config.hash
    # Nothing irrelevant is asked for; what is asked for and merged away counts as relevant.
    assert trial.asked == set(trial.values)


@pytest.mark.parametrize("config", NAMED, ids=lambda config: config.name)
def test_a_named_config_is_its_own_member(config: QuantizationConfig) -> None:
    """So that a search which starts from it shows it under its name."""
    assert QuantizationSpace(64, config.iterations).member(config) == config


@patient
@given(spaces, seeds)
def test_variation_stays_in_the_space(space: QuantizationSpace, seed: int) -> None:
    rng = Random(seed)
    a, b = space.random(0, rng), space.random(0, rng)
    child = space.mutate(a, rng)
    assert child != a
    for config in (a, child, space.cross(a, b, rng), space.member(rng.choice(NAMED))):
        assert space.member(config) == config
        for name, decision in space.decisions.items():
            value = getattr(config, name)
            if name not in set(space.relevant(config)):
                assert value == QuantizationConfig.model_fields[name].default or name in ("tiar_iterations", "solver")
            elif isinstance(decision, Choice):
                assert value in decision.options
            else:
                assert decision.low <= value <= decision.high


@patient
@given(spaces, seeds)
def test_a_cross_has_every_decision_from_one_of_the_two(space: QuantizationSpace, seed: int) -> None:
    rng = Random(seed)
    a, b = space.random(0, rng), space.random(0, rng)
    child = space.cross(a, b, rng)
    merged = {"tib": "nearest", "tib_bits": None, "fsc": "none", "reconstruction": "block"}
    if "hybrid" in (a.solver, b.solver):
        # Of its two parts the child may have one alone.
        merged["solver"] = "adaround" if child.tib in ("nearest", "layers") else "descent"
    for name in space.relevant(child):
        # A parent that does not have the decision hands down the default, as near as the space has it.
        handed = [space.decisions[name].nearest(getattr(parent, name)) for parent in (a, b)]
        assert getattr(child, name) in (*handed, merged.get(name, handed[0]))
    assert space.cross(a, a, rng) == a


@patient
@given(spaces, seeds)
def test_features_have_one_width_and_tell_members_apart(space: QuantizationSpace, seed: int) -> None:
    rng = Random(seed)
    a = space.random(0, rng)
    b = space.mutate(a, rng)
    features = space.encode(a)
    assert features.shape == space.encode(b).shape == (1, space.width)
    assert all(-1 - 1e-9 <= value <= 1 + 1e-9 for value in features[0])
    assert features.tobytes() != space.encode(b).tobytes()


@pytest.mark.parametrize(
    ("base", "same"),
    [
        # A parameter of a range that is not used.
        ({"activation_range": "minmax"}, {"momentum": 0.9}),
        ({"activation_range": "ema"}, {"percentile": 99.5}),
        # Nothing about activations matters where they stay in full precision.
        (
            {"activation_bits": 32},
            {"activation_range": "mse", "granularity": "token", "fsc": "all", "matmuls": True},
        ),
        # Nothing is learnt: no iterations, no weight of the rounding term.
        (
            {"reconstruction": "none", "tib": "nearest"},
            {
                "iterations": 100,
                "rate": 0.02,
                "rounding_weight": 0.02,
                "warmup": 0.1,
                "tiar_iterations": 300,
                "solver": "adaround",
                "sweeps": 2,
                "restarts": 3,
            },
        ),
        # Without reconstruction the block's layers are rounded to nearest like any other.
        ({"reconstruction": "none", "tib": "nearest"}, {"tib": "layers"}),
        ({"tib": "nearest"}, {"tiar_iterations": 400, "tiar_rate": 1e-3}),
        ({}, {"tib_bits": 4}),
        (ADAROUND, {**ADAROUND, "tib_bits": 4}),
        ({"weight_bits": 6}, {"tib_bits": 6}),
        # Descent takes no steps of Adam, and goes by layers whatever the unit.
        ({"solver": "descent"}, {"iterations": 100, "tiar_rate": 1e-3, "reconstruction": "layer"}),
        ({}, {"steps": 64}),
        # Weights alone, to nearest: no data are looked at.
        ({"activation_bits": 32, "reconstruction": "none", "tib": "nearest"}, {"images": 32, "steps": 2}),
        # A row's own range leaves nothing for a timestep's grid.
        ({"granularity": "token", "fsc": "none"}, {"fsc": "tib"}),
    ],
)
def test_equal_behaviour_has_an_equal_hash(base: dict[str, Any], same: dict[str, Any]) -> None:
    space = QuantizationSpace(20)
    one, other = QuantizationConfig.build(**base), QuantizationConfig.build(**{**base, **same})
    assert one != other
    assert space.member(one).hash == space.member(other).hash


@pytest.mark.parametrize(
    "change",
    [
        {"weight_bits": 8},
        {"activation_bits": 6},
        {"edge_bits": 4},
        {"momentum": 0.9},
        {"tib_bits": 8},
        {"fsc": "tib"},
        {**ADAROUND, "iterations": 100},
        {**ADAROUND, "tiar_rate": 1e-3},
        {"steps": 5},
        {"images": 32},
        {"matmuls": True},
    ],
)
def test_different_behaviour_keeps_its_own_hash(change: dict[str, Any]) -> None:
    space = QuantizationSpace(20)
    base = {name: value for name, value in change.items() if name == "solver"}
    one, other = QuantizationConfig.build(**base), QuantizationConfig.build(**change)
    assert space.member(one).hash != space.member(other).hash


def test_the_cap_on_iterations_holds_for_every_member() -> None:
    rng = Random(0)
    for cap in (0, 1, 2, 60):
        space = QuantizationSpace(5, cap)
        for config in [*(space.random(0, rng) for _ in range(50)), *map(space.member, NAMED)]:
            spent = 0 if config.reconstruction == "none" else config.iterations
            block = config.tiar_iterations if config.tib in ("tiar", "table") else 0
            if getattr(config, "solver", "adaround") == "adaround":
                assert spent <= cap
                assert block <= 5 * cap


@settings(deadline=None, max_examples=5)
@given(seeds)
def test_optuna_can_drive_the_space(seed: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = QuantizationSpace(5)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed % 2**32))
    for _ in range(5):
        trial = study.ask()
        config = space.suggest(trial)
        assert space.member(config) == config
        drawn = space.parameters(config)
        assert set(drawn) == set(trial.params)


def test_a_range_rounds_to_what_can_be_told_apart() -> None:
    rate = Range(1e-4, 1e-2, log=True)
    assert rate.nearest(0.00123456) == 0.00123
    assert rate.nearest(5.0) == 1e-2
    assert Range(16, 256, log=True, whole=True).nearest(63.7) == 64


def test_an_impossible_space_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one denoiser call"):
        QuantizationSpace(0)
