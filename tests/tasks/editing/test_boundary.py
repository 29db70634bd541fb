"""Boundaries: what an edit moves them by, and what they say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import DataError
from fewstep.search_spaces.edit import BoundaryConfig
from fewstep.tasks.editing.boundary import NEAR_CHANCE, Boundary, Place, fit_boundary
from fewstep.tasks.editing.latents import rescaled

PLACE = Place("wide", "z", -1.0, 500.0, "none", "0" * 16, "ddim/uniform-t@4")
SHAPE = (2, 3, 3)


def clouds(shift: float, count: int = 80, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two Gaussian clouds whose centres are 2 `shift` apart along the first coordinate, off the origin."""
    rng = torch.Generator().manual_seed(seed)
    positive, negative = (torch.randn(count, *SHAPE, generator=rng) + 3.0 for _ in range(2))
    positive[:, 0, 0, 0] += shift
    negative[:, 0, 0, 0] -= shift
    return positive, negative


@settings(max_examples=30, deadline=None)
@given(strength=st.floats(-20, 20), C=st.sampled_from([1e-3, 1.0]), standardise=st.booleans(), seed=st.integers(0, 5))
def test_an_edit_moves_the_signed_distance_by_exactly_what_is_asked(
    strength: float, C: float, standardise: bool, seed: int
) -> None:
    positive, negative = clouds(1.0, seed=seed)
    boundary = fit_boundary(positive, negative, BoundaryConfig(C=C, standardise=standardise), PLACE)
    assert float(boundary.normal.norm()) == pytest.approx(1, abs=1e-5)
    moved = boundary.distance(negative + boundary.move(strength)) - boundary.distance(negative)
    assert torch.allclose(moved, torch.full_like(moved, strength * boundary.spread), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("standardise", [False, True])
def test_the_distance_has_the_machines_sign_intercept_included(standardise: bool) -> None:
    positive, negative = clouds(4.0)
    boundary = fit_boundary(positive, negative, BoundaryConfig(standardise=standardise), PLACE)
    assert boundary.facts.accuracy == 1.0
    # Both clouds lie far from the origin on one side: without the intercept one of these would fail.
    assert bool((boundary.distance(positive) > 0).all())
    assert bool((boundary.distance(negative) < 0).all())
    assert int(boundary.normal.abs().argmax()) == 0


def test_held_out_accuracy_is_near_chance_where_nothing_differs() -> None:
    positive, negative = clouds(0.0, count=400)
    facts = fit_boundary(positive, negative, BoundaryConfig(), PLACE).facts
    assert facts.accuracy < NEAR_CHANCE
    assert not facts.separable
    assert (facts.examples, facts.held_out) == (600, 200)


def test_too_few_examples_are_refused() -> None:
    positive, negative = clouds(1.0, count=7)
    with pytest.raises(DataError, match="7 positive examples"):
        fit_boundary(positive, negative, BoundaryConfig(), PLACE)


def test_a_boundary_comes_back_from_disk(tmp_path: Path) -> None:
    boundary = fit_boundary(*clouds(2.0), BoundaryConfig(), PLACE)
    boundary.save(tmp_path, "z")
    again = Boundary.load(tmp_path, "z")
    assert torch.equal(again.normal, boundary.normal)
    assert (again.offset, again.spread, again.facts) == (boundary.offset, boundary.spread, boundary.facts)
    (tmp_path / "z.json").unlink()
    with pytest.raises(DataError, match="fewstep edit fit"):
        Boundary.load(tmp_path, "z")


@settings(max_examples=20, deadline=None)
@given(strength=st.floats(-5, 5), seed=st.integers(0, 9))
def test_rescaling_returns_to_the_old_radius(strength: float, seed: int) -> None:
    before = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(seed))
    after = rescaled(before + strength, before)
    assert torch.allclose(after.flatten(1).norm(dim=1), before.flatten(1).norm(dim=1), rtol=1e-5)
    assert torch.equal(rescaled(before, before), before)
