"""The learned ranking: what its loss asks for, and that it learns a ranking it can learn."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.pipeline.proposers.surrogate.encoder import FEWEST, MARGIN, Example, RankingSurrogate, pairwise_hinge
from fewstep.search_spaces.schedule.evolution import random_genome
from fewstep.search_spaces.schedule.genome import FEATURES, encode
from fewstep.search_spaces.schedule.solver_space import SolverSpace

numbers = st.lists(st.floats(-3, 3), min_size=2, max_size=8)


def _tensors(scores: list[float], values: list[float], groups: list[int] | None = None) -> tuple[torch.Tensor, ...]:
    count = min(len(scores), len(values))
    grouped = torch.tensor((groups or [0] * count)[:count])
    return torch.tensor(scores[:count]).double(), torch.tensor(values[:count]).double(), grouped


@given(numbers, numbers)
def test_the_loss_is_that_of_its_definition(scores: list[float], values: list[float]) -> None:
    s, v, groups = _tensors(scores, values)
    pairs = [(a, b) for a in range(len(s)) for b in range(len(s)) if float(v[b] - v[a]) > 0.02]
    expected = [max(0.0, MARGIN - float(s[b] - s[a])) for a, b in pairs]
    assert float(pairwise_hinge(s, v, groups)) == pytest.approx(np.mean(expected) if expected else 0.0, abs=1e-9)


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=8, unique=True), st.floats(-5, 5))
def test_scores_in_the_right_order_and_far_apart_cost_nothing(ranks: list[int], shift: float) -> None:
    s, v, groups = _tensors([2.0 * r + shift for r in ranks], [0.1 * r for r in ranks])
    assert float(pairwise_hinge(s, v, groups)) == 0.0
    assert float(pairwise_hinge(-s, v, groups)) > MARGIN
    assert float(pairwise_hinge(s * 0, v, groups)) == MARGIN


def test_only_pairs_that_are_clear_known_and_of_one_group_count() -> None:
    zero = torch.zeros(2).double()
    near, unknown = torch.tensor([1.0, 1.019]).double(), torch.tensor([1.0, float("nan")]).double()
    far, one, two = torch.tensor([1.0, 2.0]).double(), torch.tensor([0, 0]), torch.tensor([0, 1])
    assert float(pairwise_hinge(zero, far, one)) == MARGIN
    for values, groups in ((near, one), (unknown, one), (far, two)):
        scores = zero.clone().requires_grad_()
        loss = pairwise_hinge(scores, values, groups)
        assert loss.item() == 0.0
        loss.backward()  # type: ignore[no-untyped-call]
        assert scores.grad is not None
        assert not scores.grad.any()


SPACE = SolverSpace(-5.0, 4.6, (3, 4, 5))


def _examples(count: int, seed: int) -> list[Example]:
    """Schedules whose cheap value depends on their lambdas alone, and the dear one on the predictions too."""
    rng = Random(seed)
    examples = []
    for _ in range(count):
        genome = random_genome(SPACE, rng.choice(SPACE.nfes), rng)
        cheap = math.exp(genome.lambdas[1] - 0.3 * genome.lambdas[-1])
        dear = cheap * math.exp(0.5 * sum(g.prediction == "noise" for g in genome.genes) / len(genome.genes))
        known = rng.random() < 0.6
        examples.append(Example(encode(genome), genome.nfe, (cheap, dear if known else math.nan)))
    return examples


@pytest.fixture(scope="module")
def fitted() -> RankingSurrogate:
    surrogate = RankingSurrogate(2, seed=1)
    surrogate.fit(_examples(240, 0))
    return surrogate


def test_a_ranking_is_learned(fitted: RankingSurrogate) -> None:
    fresh = _examples(200, 1)
    for fidelity in (0, 1):
        tau = fitted.tau(fresh, fidelity)
        assert tau is not None
        assert tau > 0.6


def test_a_fit_is_a_function_of_examples_and_seed_and_leaves_the_random_state_alone() -> None:
    examples, fresh = _examples(40, 0), [e.features for e in _examples(10, 1)]
    scores = []
    for seed in (3, 3, 4):
        torch.rand(7)  # whatever happened before
        before = torch.get_rng_state()
        surrogate = RankingSurrogate(2, seed=seed, steps=10)
        surrogate.fit(examples)
        assert torch.equal(torch.get_rng_state(), before)
        scores.append(surrogate.predict(fresh))
    assert scores[0].shape == (10, 2)
    assert np.array_equal(scores[0], scores[1])
    assert not np.allclose(scores[0], scores[2])


def test_padding_does_not_change_a_score(fitted: RankingSurrogate) -> None:
    short, long = (np.random.default_rng(i).normal(size=(n, FEATURES)).astype(np.float32) for i, n in ((0, 2), (1, 9)))
    together = fitted.predict([short, long])
    np.testing.assert_allclose(together[0], fitted.predict([short])[0], atol=1e-6)
    np.testing.assert_allclose(together[1], fitted.predict([long])[0], atol=1e-6)


def test_too_few_examples_leave_it_unfitted() -> None:
    surrogate = RankingSurrogate(2)
    surrogate.fit(_examples(FEWEST - 1, 0))
    assert not surrogate.ready
    assert surrogate.tau(_examples(20, 1), 0) is None
    with pytest.raises(AssertionError):
        surrogate.predict([_examples(1, 0)[0].features])
    RankingSurrogate(2, steps=1).fit(_examples(FEWEST, 0))


def test_values_of_zero_and_unknown_ones_do_not_poison_the_fit() -> None:
    examples = _examples(30, 0)
    examples[0] = Example(examples[0].features, examples[0].nfe, (0.0, float("nan")))
    examples[1] = Example(examples[1].features, examples[1].nfe, (float("nan"), float("nan")))
    surrogate = RankingSurrogate(2, steps=10)
    surrogate.fit(examples)
    assert np.isfinite(surrogate.predict([e.features for e in examples])).all()


def test_tau_needs_pairs(fitted: RankingSurrogate) -> None:
    assert fitted.tau([], 0) is None
    assert fitted.tau(_examples(2, 0), 0) is None
    unknown = [Example(e.features, e.nfe, (1.0, float("nan"))) for e in _examples(20, 0)]
    assert fitted.tau(unknown, 1) is None
