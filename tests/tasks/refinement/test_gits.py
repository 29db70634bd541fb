"""Times by dynamic programming: optimal, and zero where a trajectory is straight."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigurationError
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.refinement.gits import Trajectories, cheapest_path, jump_costs


def _total(costs: np.ndarray, path: tuple[int, ...], weight: float) -> float:  # type: ignore[type-arg]
    return float(sum(weight**k * costs[i, j] for k, (i, j) in enumerate(itertools.pairwise(path))))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.data())
def test_the_path_is_the_best_of_all_paths(points: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, points - 1))
    weight = data.draw(st.sampled_from([0.8, 1.0, 1.15]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    costs = np.where(np.triu(np.ones((points, points)), 1) > 0, rng.normal(size=(points, points)), np.inf)
    path = cheapest_path(costs, steps, weight)
    every = [(0, *inner, points - 1) for inner in itertools.combinations(range(1, points - 1), steps - 1)]
    assert path in every
    assert _total(costs, path, weight) == pytest.approx(min(_total(costs, p, weight) for p in every))


def test_steps_along_a_straight_trajectory_cost_nothing_and_bends_cost_what_they_leave() -> None:
    times = np.array([4.0, 3.0, 2.0, 1.0, 0.0])
    slope = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    straight = torch.stack([float(t) * slope for t in times])
    costs = jump_costs(straight, slope.expand(4, 1, 2), times)
    assert np.abs(costs[np.triu_indices(5, 1)]).max() < 1e-12
    assert np.isinf(costs[np.tril_indices(5)]).all()
    # An arc from (4, 0) to (0, 0) through (2, 1): its first slope, followed for two steps, lands at (2, 2).
    points = torch.tensor([[[4.0, 0.0]], [[3.0, 0.75]], [[2.0, 1.0]], [[1.0, 0.75]], [[0.0, 0.0]]], dtype=torch.float64)
    slopes = torch.tensor([[[1.0, -1.0]]] * 4, dtype=torch.float64)
    assert jump_costs(points, slopes, times)[0, 2] == pytest.approx(2.0 - 1.0)


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="give 1 to 3"):
        cheapest_path(np.zeros((4, 4)), 4, 1.0)


def test_a_models_times_rise_from_start_to_end_and_their_cost_is_counted() -> None:
    files = find_model("digits-ddpm")
    denoiser = Denoiser(files)
    found = Trajectories(denoiser, 0, samples=4, points=9)
    assert found.calls == denoiser.calls == 4 * 8
    for name, times in found.grids(3).items():
        assert times[0] == files.noise.lambda_start
        assert np.isinf(times[-1]) == name.endswith("-zero")
        assert len(times) == 4
        assert (np.diff(times) > 0).all()
