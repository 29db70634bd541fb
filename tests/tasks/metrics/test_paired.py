"""A Frechet distance guessed from few images and a control is that of many where it must be, and orders as they do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.metrics.moments import Array, Moments
from fewstep.tasks.metrics.paired import PairedFrechet, shrunk_change
from fewstep.tasks.models.files import find_model
from fewstep.tasks.work import FEATURES, Part, Subject

FEW, MANY = 32, 500


@pytest.fixture(scope="module")
def metric() -> PairedFrechet:
    return PairedFrechet(Setting(Subject("digits-ddpm"), find_model("digits-ddpm")))


def _samples(metric: PairedFrechet, count: int, shift: float = 0.0, seed: int = 0) -> Array:
    """Features near the reference; the same noise whatever the shift."""
    reference: FrechetReference = metric.frechet
    root = np.linalg.cholesky(reference.covariance + 1e-6 * np.eye(reference.dim))
    noise = np.random.default_rng(seed).standard_normal((count, reference.dim))
    found: Array = reference.mean + (noise * (1 + shift)) @ root.T + shift
    return found


def _guess(metric: PairedFrechet, control: Array, candidate: Array, few: int) -> float:
    parts = [Part(0, len(control), Moments.of(control))]
    parts += [Part(0, few, values={FEATURES: features[:few]}) for features in (control, candidate)]
    return metric.score(parts, {}).value


def test_of_the_control_itself_it_is_its_distance_and_of_all_images_nearly_their_own(metric: PairedFrechet) -> None:
    control, candidate = _samples(metric, MANY), _samples(metric, MANY, 0.3)
    own, other = (metric.frechet.distance(Moments.of(features)) for features in (control, candidate))
    assert _guess(metric, control, control, FEW) == pytest.approx(own, rel=1e-9)
    assert _guess(metric, control, candidate, MANY) == pytest.approx(other, rel=0.05)


def test_a_change_that_is_chance_is_shrunk_away_and_one_that_all_images_show_is_kept() -> None:
    rng = np.random.default_rng(0)
    control, other = rng.standard_normal((2, 2000, 6))
    plain = np.cov((3 * control).T) - np.cov(control.T)
    assert np.abs(shrunk_change(3 * control, control) - plain).max() < 0.01 * np.abs(plain).max()
    # Two draws of one law: over many of them less than half of what differs is taken for a change.
    left = [np.linalg.norm(shrunk_change(a, b)) for a, b in rng.standard_normal((50, 2, FEW, 6))]
    seen = [np.linalg.norm(np.cov(a.T) - np.cov(b.T)) for a, b in rng.standard_normal((50, 2, FEW, 6))]
    assert np.mean(left) < 0.5 * np.mean(seen)
    assert not shrunk_change(other, other).any()


def test_few_images_order_candidates_as_many_do_and_better_than_their_own_distance(metric: PairedFrechet) -> None:
    shifts = np.linspace(-0.05, 0.05, 21)
    candidates = [_samples(metric, MANY, shift) for shift in shifts]
    whole = [metric.frechet.distance(Moments.of(features)) for features in candidates]
    guessed = [_guess(metric, candidates[7], features, FEW) for features in candidates]
    alone = [metric.frechet.distance(Moments.of(features[:FEW])) for features in candidates]
    paired, own = (kendalltau(values, whole).statistic for values in (guessed, alone))
    assert paired > 0.8
    assert paired > own + 0.3


def test_changes_that_leave_no_covariance_give_a_distance_all_the_same(metric: PairedFrechet) -> None:
    control = _samples(metric, MANY)
    candidate = metric.frechet.mean + 0.0 * control
    assert 0 < _guess(metric, control, candidate, FEW) < float("inf")
