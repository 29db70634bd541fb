"""Moves across NFEs and of the continuous decisions alone: what they keep, and that they get somewhere."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.pipeline.proposers.moves import LocalMoves
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


class _Moves(LocalMoves[Genome]):
    def __init__(self, members: Sequence[tuple[int, Genome, float]] = ()) -> None:
        self.known: list[tuple[int, Genome, float]] = []
        super().__init__(SPACE, lambda: self.known)
        for member in members:
            self.add(*member)

    def add(self, number: int, genome: Genome, value: float) -> None:
        self.known.append((number, genome, value))
        super().add(number, genome, value)


def test_a_move_keeps_every_discrete_decision_and_the_nfe() -> None:
    best = random_genome(SPACE, 5, Random(3))
    moves = _Moves([(0, best, 1.0), (1, random_genome(SPACE, 5, Random(4)), 2.0)])
    moved = {moves.move(f"0/{i}") for i in range(10)}
    assert len(moved) == 10
    for genome in moved:
        assert genome is not None
        flat, start = SPACE.parameters(genome), SPACE.parameters(best)
        assert {k: v for k, v in flat.items() if not isinstance(v, float)} == {
            k: v for k, v in start.items() if not isinstance(v, float)
        }
        assert max(abs(a - b) for a, b in zip(genome.lambdas, best.lambdas, strict=True)) < 2.0
    assert moves.move("0/1") == moves.move("0/1")


def test_without_a_value_there_is_nothing_to_move_around() -> None:
    assert _Moves().move("0") is None


def test_a_move_is_a_function_of_the_members_in_whatever_order_they_came_and_whatever_was_asked_before() -> None:
    best = random_genome(SPACE, 4, Random(1))
    first = _Moves([(0, best, 1.0)])
    found = [first.move(f"0/{i}") for i in range(60)]
    members = [(0, best, 1.0), *((i + 1, g, 1.5 + 0.1 * (i * 7 % 13)) for i, g in enumerate(found) if g is not None)]
    mixed = _Moves()
    for i, member in enumerate(Random(2).sample(members, len(members))):
        mixed.add(*member)
        if i % 5 == 0:
            mixed.move(f"1/{i}")
    assert mixed.move("2") == _Moves(members).move("2")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_moves_told_to_cmaes_come_nearer_to_the_optimum_than_as_many_untold_ones(seed: int) -> None:
    """Times with a known optimum; untold moves stay around the start, told ones walk."""
    start = random_genome(SPACE, 4, Random(seed))
    steps = len(start.lambdas)
    target = SPACE.lambda_start + np.cumsum([0.0, *(6.0 * (i + 1) / (steps * steps) for i in range(steps - 1))])

    def badness(genome: Genome) -> float:
        return float(np.sum((np.array(genome.lambdas) - target)[1:] ** 2))

    told, first = _Moves([(0, start, badness(start))]), _Moves([(0, start, badness(start))])
    walked, stayed = [badness(start)], []
    for i in range(1, 90):
        genome, other = told.move(f"{seed}/{i}"), first.move(f"{seed}/{i}")
        assert genome is not None
        assert other is not None
        told.add(i, genome, badness(genome))
        walked.append(badness(genome))
        stayed.append(badness(other))
    assert min(walked) < 0.5 * min(stayed)
