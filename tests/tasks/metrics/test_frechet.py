"""The distance against closed forms, against pytorch-fid, and against singular values."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.tasks.metrics import scipy_compat
from fewstep.tasks.metrics._rebind import rebound
from fewstep.tasks.metrics.frechet import FrechetReference, frechet_distance
from fewstep.tasks.metrics.moments import Moments, ReferenceMoments
from fewstep.tasks.metrics.scipy_compat import pytorch_fid_distance

Gaussian = tuple[np.ndarray, np.ndarray]


def features(count: int, dim: int, seed: int, decay: float = 0.5, tilt: float = 0.0) -> np.ndarray:
    """Correlated features in one common basis; `tilt` moves mean and spectrum."""
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((dim, dim)))[0]
    scale = np.arange(1, dim + 1) ** -decay * (1.0 + tilt * np.sin(np.arange(dim)))
    return (np.random.default_rng(seed).standard_normal((count, dim)) * scale + tilt * scale) @ basis.T


def gaussian(X: np.ndarray) -> Gaussian:
    return X.mean(axis=0), np.cov(X, rowvar=False)


def by_singular_values(X: np.ndarray, Y: np.ndarray) -> float:
    """The distance between samples without squaring: tr (C C_r)^(1/2) is the nuclear norm of A B^T."""
    A, B = ((Z - Z.mean(axis=0)) / np.sqrt(len(Z) - 1) for Z in (X, Y))
    diff = X.mean(axis=0) - Y.mean(axis=0)
    nuclear = np.linalg.svd(A @ B.T, compute_uv=False).sum()
    return float(diff @ diff + (A * A).sum() + (B * B).sum() - 2.0 * nuclear)


@given(dim=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_diagonal_gaussians_have_a_closed_form(dim: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    mu, mu_r = generator.standard_normal((2, dim))
    s, s_r = generator.uniform(0.0, 3.0, (2, dim))
    expected = ((mu - mu_r) ** 2).sum() + ((s - s_r) ** 2).sum()
    assert frechet_distance(mu, np.diag(s**2), mu_r, np.diag(s_r**2)) == pytest.approx(expected, rel=1e-12)


def test_scalars_and_a_point_mass() -> None:
    assert frechet_distance([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx(5.0)
    zero = np.zeros((3, 3))
    assert frechet_distance(np.ones(3), np.eye(3), np.zeros(3), zero) == pytest.approx(6.0)
    assert frechet_distance(np.ones(3), zero, np.zeros(3), np.eye(3)) == pytest.approx(6.0)


@pytest.mark.parametrize(("dim", "count"), [(2, 50), (16, 500), (64, 500), (256, 1000)])
def test_same_value_as_pytorch_fid(dim: int, count: int) -> None:
    mu, sigma = gaussian(features(count, dim, 1, tilt=0.3))
    mu_r, sigma_r = gaussian(features(count, dim, 2))
    theirs = pytorch_fid_distance(mu, sigma, mu_r, sigma_r)
    assert frechet_distance(mu, sigma, mu_r, sigma_r) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("candidates", "references"), [(60, 400), (400, 60), (60, 60), (60, 90)])
def test_singular_covariances(candidates: int, references: int) -> None:
    X, Y = features(candidates, 128, 1, tilt=0.3), features(references, 128, 2)
    truth = by_singular_values(X, Y)
    # pytorch-fid's own error is a few 1e-7 here: the square roots of its rounding noise add up.
    assert frechet_distance(*gaussian(X), *gaussian(Y)) == pytest.approx(
        pytorch_fid_distance(*gaussian(X), *gaussian(Y)), rel=1e-6
    )
    # Where the counts are known, the noise beyond the rank is left out.
    assert FrechetReference.of(Moments.of(Y)).distance(Moments.of(X)) == pytest.approx(truth, rel=1e-11)


def test_distance_to_itself_is_zero_and_it_is_symmetric() -> None:
    for count in (20, 500):
        a, b = Moments.of(features(count, 32, 1)), Moments.of(features(count, 32, 2, tilt=0.5))
        assert FrechetReference.of(a).distance(a) == pytest.approx(0.0, abs=1e-12 * np.trace(a.covariance))
        there, back = FrechetReference.of(a).distance(b), FrechetReference.of(b).distance(a)
        assert there == pytest.approx(back, rel=1e-11)
        assert there > 0


def test_moments_means_and_reference_moments_agree() -> None:
    X, Y = features(300, 16, 1), features(300, 16, 2, tilt=0.2)
    a, b = Moments.of(X), Moments.of(Y)
    reference = FrechetReference.of(b)
    value = reference.distance(a)
    assert reference.distance(a.mean, a.covariance) == value
    assert FrechetReference.of(ReferenceMoments(b.mean, b.covariance, None)).distance(a) == value
    # Nothing given is written to, and a second call finds the kept root as it was.
    assert reference.distance(a) == value


def test_what_rounding_leaves_of_asymmetry_counts_with_both_halves() -> None:
    sigma = np.array([[2.0, 1.0 + 1e-7], [1.0 - 1e-7, 2.0]])
    symmetric = (sigma + sigma.T) / 2
    zero = np.zeros(2)
    expected = frechet_distance(zero, symmetric, zero, np.eye(2))
    assert frechet_distance(zero, sigma, zero, np.eye(2)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(zero, np.eye(2), zero, sigma) == pytest.approx(expected, rel=1e-12)


def orthogonal(dim: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(3).standard_normal((dim, dim)))[0]


@pytest.mark.parametrize("side", ["candidate", "reference"])
@pytest.mark.parametrize("share", [1.0, 0.1, 1e-3])
def test_a_matrix_that_is_no_covariance_gives_no_distance(side: str, share: float) -> None:
    """Neither an unsymmetric one, nor one with an eigenvalue of `-share` times the largest."""
    dim = 12
    good = orthogonal(dim) @ np.diag(np.linspace(0.5, 2.0, dim)) @ orthogonal(dim).T
    good = (good + good.T) / 2
    w, V = np.linalg.eigh(good)
    negative = V @ np.diag([-share * w[-1], *w[1:]]) @ V.T
    skew = good.copy()
    skew[2, 5] += share
    zero = np.zeros(dim)
    for bad in ((negative + negative.T) / 2, skew):
        sigmas = (bad, good) if side == "candidate" else (good, bad)
        with pytest.raises(EvaluationError, match=side):
            frechet_distance(zero, sigmas[0], zero, sigmas[1])
    with pytest.raises(ConfigurationError, match="complex"):
        frechet_distance(zero, good, zero, good + 1j) if side == "reference" else frechet_distance(
            zero, good + 1j, zero, good
        )


def test_means_too_large_to_square_are_an_evaluation_error() -> None:
    with pytest.raises(EvaluationError, match="too large"):
        frechet_distance(np.full(3, 1e200), np.eye(3), np.zeros(3), np.eye(3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    good_mean, good = np.zeros(3), np.eye(3)
    bad_mean, bad = good_mean.copy(), good.copy()
    bad_mean[1] = bad[0, 2] = bad[2, 0] = value
    reference = FrechetReference(good_mean, good)
    with pytest.raises(EvaluationError, match="candidate mean has 1 "):
        reference.distance(bad_mean, good)
    with pytest.raises(EvaluationError, match="candidate covariance has 2 "):
        reference.distance(good_mean, bad)
    with pytest.raises(EvaluationError, match="reference covariance"):
        FrechetReference(good_mean, bad)


def test_finite_values_too_large_to_multiply_are_an_evaluation_error() -> None:
    huge = np.full((3, 3), 1e200) + 1e200 * np.eye(3)
    with pytest.raises(EvaluationError, match="too large"):
        FrechetReference(np.zeros(3), huge).distance(np.zeros(3), huge)


def test_shapes_that_do_not_fit_are_refused() -> None:
    reference = FrechetReference(np.zeros(3), np.eye(3))
    with pytest.raises(ConfigurationError, match="4 features and the reference 3"):
        reference.distance(np.zeros(4), np.eye(4))
    with pytest.raises(ConfigurationError, match=r"\(3,\) and \(2, 2\)"):
        reference.distance(np.zeros(3), np.eye(2))
    with pytest.raises(ConfigurationError, match="beside the mean"):
        reference.distance(np.zeros(3))  # type: ignore[call-overload]
    with pytest.raises(EvaluationError, match="at least 2"):
        reference.distance(Moments.of(np.zeros((1, 3))))


def test_pytorch_fid_runs_on_a_scipy_without_disp(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*gaussian(features(90, 8, 1)), *gaussian(features(90, 8, 2)))
    real = scipy.linalg.sqrtm
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = pytorch_fid_distance(*arguments)

    def sqrtm(matrix: np.ndarray) -> np.ndarray:
        return np.asarray(real(matrix))

    monkeypatch.setattr(scipy_compat.scipy.linalg, "sqrtm", sqrtm)
    assert pytorch_fid_distance(*arguments) == pytest.approx(before, rel=1e-12)
    assert scipy.linalg.sqrtm is sqrtm


def test_rebinding_leaves_the_library_alone() -> None:
    copy = rebound(_uses_helper, _helper=lambda: "ours")
    assert copy(tail="!") == "ours!"
    assert _uses_helper() == "theirs?"
    with pytest.raises(TypeError, match="plain Python function"):
        rebound(len)


def _helper() -> str:
    return "theirs"


def _uses_helper(*, tail: str = "?") -> str:
    return _helper() + tail
