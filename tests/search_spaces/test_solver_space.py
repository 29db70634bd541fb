"""The searched space: genomes, schedules and flat parameters are three views of one member."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.evolution import MIN_SPACING, cross, mutate, random_genome, repair
from fewstep.search_spaces.schedule.formula import Derivative, Formula
from fewstep.search_spaces.schedule.genome import FEATURES, Genome, encode, to_genome, to_schedule
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS
from fewstep.search_spaces.schedule.solver_space import GAP_RANGE, SolverSpace
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import all_presets

NOISE = DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
SPACE = SolverSpace(NOISE.lambda_start, NOISE.lambda_end, tuple(range(1, 11)))
SEEDS = st.integers(0, 2**32 - 1)
NFES = st.integers(1, 10)


def explodes(genome: Genome) -> bool:
    """Whether compiling refuses the genome for its coefficients; any other refusal is an error of the space."""
    try:
        compile_schedule(to_schedule(genome), NOISE)
    except ScheduleError as error:
        reason = str(error)
    else:
        return False
    assert "too close together for its orders" in reason
    return True


def assert_member(genome: Genome, nfe: int) -> None:
    """Valid, of that NFE, inside the space; it compiles unless its coefficients explode, which is refused."""
    assert genome.nfe == nfe
    schedule = to_schedule(genome)
    assert schedule.nfe == nfe
    assert genome.lambdas[0] == SPACE.lambda_start
    gaps = np.diff(genome.lambdas)
    assert np.all(gaps >= MIN_SPACING - 1e-9), gaps
    if len(gaps):
        low, high = SPACE.last_range
        assert low <= genome.lambdas[-1] <= high
    assert len(genome.genes) == len(gaps) + (genome.end == "zero") <= SPACE.max_steps
    if not explodes(genome):
        assert compile_schedule(schedule, NOISE).nfe == nfe
    features = encode(genome)
    assert features.shape == (len(genome.genes), FEATURES)
    assert features.dtype == np.float32
    assert np.all(np.isfinite(features))


@pytest.mark.parametrize("nfe", range(1, 11))
def test_every_preset_is_a_member(nfe: int) -> None:
    presets = all_presets(NOISE, nfe)
    assert len(presets) == len(SEARCH_PRESETS) * 8
    for name, schedule in presets.items():
        genome = to_genome(schedule)
        assert genome.nfe == schedule.nfe == nfe, name
        assert to_schedule(genome).hash == schedule.hash, name


@given(SEEDS, NFES)
@settings(max_examples=200, deadline=None)
def test_random_genomes_are_members_and_round_trip(seed: int, nfe: int) -> None:
    genome = random_genome(SPACE, nfe, Random(seed))
    assert_member(genome, nfe)
    schedule = to_schedule(genome, "some name")
    back = to_genome(schedule)
    assert to_schedule(back).hash == schedule.hash
    # The genome that a schedule gives is a fixed point: decisions without effect are gone.
    assert to_genome(to_schedule(back)) == back


@given(SEEDS, NFES)
@settings(max_examples=200, deadline=None)
def test_parameters_are_the_same_member(seed: int, nfe: int) -> None:
    genome = random_genome(SPACE, nfe, Random(seed))
    parameters = SPACE.parameters(genome)
    back = SPACE.from_parameters(parameters)
    assert (back.end, back.first_call, back.genes) == (genome.end, genome.first_call, genome.genes)
    clipped = any(abs(v) >= GAP_RANGE for name, v in parameters.items() if name.startswith("gap."))
    if not clipped:
        np.testing.assert_allclose(back.lambdas, genome.lambdas, rtol=0, atol=1e-9)
    assert (back.lambdas[0], back.lambdas[-1]) == (genome.lambdas[0], genome.lambdas[-1])
    # After one clipping the parameters are those of a member.
    again = SPACE.from_parameters(SPACE.parameters(back))
    np.testing.assert_allclose(again.lambdas, back.lambdas, rtol=0, atol=1e-9 if not clipped else 1.0)


@given(SEEDS, NFES)
@example(999999999, 6)  # one of its mutants explodes
@settings(max_examples=200, deadline=None)
def test_mutants_are_members(seed: int, nfe: int) -> None:
    rng = Random(seed)
    genome = random_genome(SPACE, nfe, rng)
    for _ in range(8):
        child = mutate(SPACE, genome, rng)
        assert child != genome
        assert_member(child, nfe)
        genome = child


def test_hardly_any_mutant_explodes() -> None:
    refused = total = 0
    for seed in range(300):
        rng = Random(seed)
        genome = random_genome(SPACE, 3 + seed % 8, rng)
        for _ in range(8):
            genome = mutate(SPACE, genome, rng)
            refused += explodes(genome)
            total += 1
    assert refused / total < 0.005


@given(SEEDS, NFES)
@settings(max_examples=200, deadline=None)
def test_crosses_are_members(seed: int, nfe: int) -> None:
    rng = Random(seed)
    a, b = random_genome(SPACE, nfe, rng), random_genome(SPACE, nfe, rng)
    child = cross(SPACE, a, b, rng)
    assert_member(child, nfe)
    if len(a.genes) == len(b.genes) and len(a.lambdas) == len(b.lambdas):
        assert all(g in (x, y) for g, x, y in zip(child.genes, a.genes, b.genes, strict=True))
    else:
        assert child == a


@pytest.mark.parametrize("nfe", [1, 2, 5, 10])
def test_mutants_of_presets_are_members(nfe: int) -> None:
    rng = Random(0)
    for name, schedule in all_presets(NOISE, nfe).items():
        genome = repair(SPACE, to_genome(schedule))
        assert_member(genome, nfe)
        for _ in range(5):
            assert_member(mutate(SPACE, genome, rng), nfe), name


def test_the_same_seed_gives_the_same_members() -> None:
    def walk(seed: int) -> list[Genome]:
        rng = Random(seed)
        a, b = random_genome(SPACE, 5, rng), random_genome(SPACE, 5, rng)
        return [a, b, mutate(SPACE, a, rng), cross(SPACE, a, b, rng)]

    assert walk(3) == walk(3) != walk(4)


@given(st.integers(1, 10), st.lists(st.floats(-20, 20, allow_nan=False), min_size=10, max_size=10))
@settings(deadline=None)
def test_repair_is_idempotent(count: int, values: list[float]) -> None:
    genome = random_genome(SPACE, count, Random(count))
    moved = (SPACE.lambda_start, *values[: len(genome.lambdas) - 1])
    genome = repair(SPACE, Genome(moved, genome.end, genome.first_call, genome.genes[: len(moved)]))
    np.testing.assert_allclose(repair(SPACE, genome).lambdas, genome.lambdas, rtol=0, atol=1e-12)
    assert np.all(np.diff(genome.lambdas) >= MIN_SPACING - 1e-9)


@given(SEEDS, NFES)
@settings(deadline=None)
def test_features_tell_different_schedules_apart(seed: int, nfe: int) -> None:
    rng = Random(seed)
    a = to_genome(to_schedule(random_genome(SPACE, nfe, rng)))
    b = to_genome(to_schedule(mutate(SPACE, a, rng)))
    if to_schedule(_encoded(a)).hash != to_schedule(_encoded(b)).hash:
        assert encode(a).tobytes() != encode(b).tobytes()


def _encoded(genome: Genome) -> Genome:
    """Without the one decision that is not encoded: the relaxation a first-order step lends its corrector."""
    genes = tuple(replace(g, relaxation="none") if g.order == 1 else g for g in genome.genes)
    return replace(genome, genes=genes)


def test_schedules_outside_the_space_are_refused() -> None:
    from_far = Step(predictor=Formula(start=-3))
    odd_scale = Step(predictor=Formula(derivatives=(Derivative(points=(-2,), relaxation="scale", coefficient=0.3),)))
    for step in (from_far, odd_scale):
        schedule = SolverSchedule.build(lambdas=(-5, -3, -1, 2), steps=(Step(), Step(), step), name="odd")
        with pytest.raises(ScheduleError, match="odd uses decisions"):
            to_genome(schedule)


@pytest.mark.parametrize("nfes", [(0,), (0, 1, 2, 3), (-1,), (101,), ()])
def test_impossible_nfe_is_refused(nfes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="NFE") as caught:
        SolverSpace(NOISE.lambda_start, NOISE.lambda_end, nfes)
    assert "\n" not in str(caught.value)


def test_large_and_small_members() -> None:
    space = SolverSpace(NOISE.lambda_start, NOISE.lambda_end, (1, 100))
    for nfe in (1, 100):
        genome = random_genome(space, nfe, Random(0))
        assert genome.nfe == nfe
        assert to_schedule(genome).nfe == nfe
    assert math.isclose(genome.lambdas[0], NOISE.lambda_start)
