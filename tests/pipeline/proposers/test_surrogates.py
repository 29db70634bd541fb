"""Surrogates by name: each learns a ranking that can be learned, in the same way whoever asks."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.proposers.surrogate.encoder import FEWEST, Example
from fewstep.pipeline.proposers.surrogate.registry import EnsembleSurrogate, make_surrogate
from fewstep.pipeline.settings import LEARNED
from fewstep.search_spaces.schedule.evolution import random_genome
from fewstep.search_spaces.schedule.genome import encode
from fewstep.search_spaces.schedule.solver_space import SolverSpace

SPACE = SolverSpace(-5.0, 4.6, (3, 4, 5))


def _examples(count: int, seed: int, dear: float = 1.0) -> list[Example]:
    """Values on scales that differ by NFE; the dear one agrees with the cheap one, and a share `dear` is known."""
    rng = Random(seed)
    examples = []
    for _ in range(count):
        genome = random_genome(SPACE, rng.choice(SPACE.nfes), rng)
        cheap = 100.0 ** (5 - genome.nfe) * math.exp(genome.lambdas[1] - 0.3 * genome.lambdas[-1])
        known = 3.0 * cheap if rng.random() < dear else math.nan
        examples.append(Example(encode(genome), genome.nfe, (cheap, known)))
    return examples


@pytest.mark.parametrize("name", LEARNED)
def test_each_learns_a_ranking_and_is_a_function_of_examples_and_seed(name: str) -> None:
    examples, fresh = _examples(150, 0, dear=0.5), _examples(100, 1)
    first, second = make_surrogate(name, 2, 3), make_surrogate(name, 2, 3)
    for surrogate in (first, second):
        assert not surrogate.ready
        assert surrogate.tau(fresh, 0) is None
        surrogate.fit(examples)
        assert surrogate.ready
    features = [e.features for e in fresh]
    scores = first.predict(features)
    assert scores.shape == (100, 2)
    assert np.array_equal(scores, second.predict(features))
    for fidelity in (0, 1):
        tau = first.tau(fresh, fidelity)
        assert tau is not None
        assert tau > 0.5


@pytest.mark.parametrize("name", LEARNED)
def test_too_few_examples_and_values_that_are_no_numbers_do_no_harm(name: str) -> None:
    surrogate = make_surrogate(name, 2, 0)
    surrogate.fit(_examples(FEWEST - 1, 0))
    assert not surrogate.ready
    examples = _examples(40, 0, dear=0.1)
    examples[0] = Example(examples[0].features, examples[0].nfe, (0.0, math.nan))
    examples[1] = Example(examples[1].features, examples[1].nfe, (math.nan, math.nan))
    surrogate.fit(examples)
    assert np.isfinite(surrogate.predict([e.features for e in examples])).all()


def test_members_disagree_more_about_what_is_far_from_the_examples() -> None:
    surrogate = EnsembleSurrogate(2, members=3)
    examples = _examples(80, 0)
    surrogate.fit(examples)
    near = [e.features for e in examples]
    assert surrogate.spread([4.0 * f for f in near]).mean() > 1.5 * surrogate.spread(near).mean()


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="trees"):
        make_surrogate("oracle", 2, 0)
