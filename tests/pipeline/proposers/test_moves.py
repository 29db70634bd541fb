"""Moves across NFEs and of the continuous decisions alone: what they keep, and that they get somewhere."""

from __future__ import annotations

from random import Random

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, create_trial

from fewstep.pipeline.proposers.moves import local_move
from fewstep.search_spaces.schedule.evolution import random_genome, with_nfe
from fewstep.search_spaces.schedule.genome import Genome, to_schedule
from fewstep.search_spaces.schedule.space import ScheduleSpace

SPACE = ScheduleSpace(-5.0, 4.6, (2, 3, 4, 5, 6, 8))


@given(st.integers(0, 10_000), st.sampled_from(SPACE.nfes), st.sampled_from(SPACE.nfes))
def test_a_member_at_another_nfe_is_a_member_and_keeps_the_decisions_for_all_steps(seed: int, a: int, b: int) -> None:
    rng = Random(seed)
    genome = random_genome(SPACE, a, rng)
    other = with_nfe(SPACE, genome, b, rng)
    assert to_schedule(other).nfe == other.nfe == b
    assert other.lambdas == tuple(sorted(other.lambdas))
    if len(genome.lambdas) > abs(b - a) + 2:
        assert (other.end, other.first_call) == (genome.end, genome.first_call)
        # Dropped or halved: the times of one are among those of the other, but for what is out of the space.
        fewer, more = sorted((genome.lambdas, other.lambdas), key=len)
        assert sum(any(abs(v - w) < 0.15 for w in more) for v in fewer) >= len(fewer) - 1
    assert with_nfe(SPACE, genome, a, rng).genes == genome.genes


def _judged(genome: Genome, number: int, value: float) -> tuple[FrozenTrial, Genome]:
    trial = create_trial(value=value, intermediate_values={0: value})
    trial.number = number
    return trial, genome


def test_a_move_keeps_every_discrete_decision_and_the_nfe() -> None:
    best = random_genome(SPACE, 5, Random(3))
    members = [_judged(best, 0, 1.0), _judged(random_genome(SPACE, 5, Random(4)), 1, 2.0)]
    moved = {local_move(SPACE, members, 0, f"0/{i}") for i in range(10)}
    assert len(moved) == 10
    for genome in moved:
        assert genome is not None
        flat, start = SPACE.parameters(genome), SPACE.parameters(best)
        assert {k: v for k, v in flat.items() if not isinstance(v, float)} == {
            k: v for k, v in start.items() if not isinstance(v, float)
        }
        assert max(abs(a - b) for a, b in zip(genome.lambdas, best.lambdas, strict=True)) < 2.0
    assert local_move(SPACE, members, 0, "0/1") == local_move(SPACE, members, 0, "0/1")


def test_without_a_value_there_is_nothing_to_move_around() -> None:
    genome = random_genome(SPACE, 4, Random(0))
    assert local_move(SPACE, [], 0, "0") is None
    assert local_move(SPACE, [_judged(genome, 0, 1.0)], 1, "0") is None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_moves_told_to_cmaes_come_nearer_to_the_optimum_than_as_many_untold_ones(seed: int) -> None:
    """Times with a known optimum; untold moves stay around the start, told ones walk."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    start = random_genome(SPACE, 4, Random(seed))
    steps = len(start.lambdas)
    target = SPACE.lambda_start + np.cumsum([0.0, *(6.0 * (i + 1) / (steps * steps) for i in range(steps - 1))])

    def badness(genome: Genome) -> float:
        return float(np.sum((np.array(genome.lambdas) - target)[1:] ** 2))

    told = [_judged(start, 0, badness(start))]
    for i in range(1, 90):
        genome = local_move(SPACE, told, 0, f"{seed}/{i}")
        assert genome is not None
        told.append(_judged(genome, i, badness(genome)))
    untold = [local_move(SPACE, told[:1], 0, f"{seed}/{i}") for i in range(1, 90)]
    assert min(badness(g) for _, g in told) < 0.5 * min(badness(g) for g in untold if g is not None)
