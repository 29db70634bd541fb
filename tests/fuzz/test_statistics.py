"""Whatever is in an .npz of statistics: moments whose distances are right, or a DataError that names the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fewstep.errors import DataError, EvaluationError
from fewstep.tasks.metrics.covariance import TOLERANCE
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.moments import Moments, ReferenceMoments, load_reference_npz, save_npz


def refused(path: Path) -> ReferenceMoments | None:
    """What is read of a file, None where it is refused."""
    try:
        found = load_reference_npz(path)
    except DataError as error:
        found, message = None, str(error)
    if found is None:
        assert str(path) in message
        return None
    D = found.mean.size
    assert (found.mean.shape, found.covariance.shape) == ((D,), (D, D))
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.covariance).all()
    return found


def distance_to_normal(moments: ReferenceMoments) -> float:
    reference = FrechetReference.of(moments)
    return reference.distance(np.zeros(reference.dim), np.eye(reference.dim))


def archive(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


dtypes = st.one_of(npst.floating_dtypes(), npst.integer_dtypes(), npst.complex_number_dtypes(), npst.boolean_dtypes())
arrays = dtypes.flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
names = st.sampled_from(["mu", "sigma", "count", "mean", "scatter", "mu_s", "arr_0"])


@given(content=st.dictionaries(names, arrays, max_size=5))
def test_arbitrary_arrays_are_refused_or_moments(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    path.write_bytes(archive(**content))
    found = refused(path)
    if found is None:
        return
    w = np.linalg.eigvalsh(found.covariance / 2 + found.covariance.T / 2)
    assert w[0] >= -2 * TOLERANCE * max(w[-1], 0) * len(w)
    try:
        value = distance_to_normal(found)
    except EvaluationError:
        # Finite values, but their squares or products are not.
        value = 0.0 if max(np.abs(found.mean).max(), w[-1]) > 1e100 else np.nan
    assert 0 <= value < np.inf


@given(
    count=st.integers(2, 40),
    dim=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["<f8", "<f4", ">f8", ">f4"]),
)
def test_statistics_of_any_features_give_their_distance(
    count: int, dim: int, seed: int, kind: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)), rng.standard_normal((50, dim))
    mu, sigma = X.mean(0), np.cov(X, rowvar=False).reshape(dim, dim)
    np.savez(tmp_path / "s.npz", mu=mu.astype(kind), sigma=sigma.astype(kind), others=np.zeros(3))
    found = refused(tmp_path / "s.npz")
    assert found is not None
    A, B = ((Z - Z.mean(0)) / np.sqrt(len(Z) - 1) for Z in (X, Y))
    squares = ((mu - Y.mean(0)) ** 2).sum() + (A * A).sum() + (B * B).sum()
    truth = squares - 2 * np.linalg.svd(A @ B.T, compute_uv=False).sum()
    # Rounding of a singular covariance, or of one that is nearly so, leaves noise whose square root counts.
    noise = 4 * dim * np.sqrt(np.finfo(kind).eps)
    assert FrechetReference.of(found).distance(Moments.of(Y)) == pytest.approx(truth, abs=noise * squares)


@given(dim=st.integers(2, 12), seed=st.integers(0, 2**32 - 1), share=st.floats(1e-3, 1e3), flawed=st.booleans())
def test_what_is_far_from_a_covariance_never_passes(
    dim: int, seed: int, share: float, flawed: bool, tmp_path: Path
) -> None:
    """An eigenvalue of -share times the trace, or an entry off by share times the largest."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    w = rng.uniform(0, 1, dim) + 1e-3
    if flawed:
        w[rng.integers(dim)] = -share * w.sum()
    sigma = (Q * w) @ Q.T
    sigma = (sigma + sigma.T) / 2
    if not flawed:
        sigma[0, 1] += share * np.abs(sigma).max()
    np.savez(tmp_path / "s.npz", mu=np.zeros(dim), sigma=sigma)
    assert refused(tmp_path / "s.npz") is None


@given(data=st.data(), own=st.booleans())
def test_a_damaged_archive_is_refused_or_holds_what_it_held(
    data: st.DataObject, own: bool, damaged: Callable[[st.DataObject, bytes], bytes], tmp_path: Path
) -> None:
    X = np.random.default_rng(1).standard_normal((20, 5))
    path = tmp_path / "s.npz"
    if own:
        save_npz(path, Moments.of(X))
    else:
        np.savez(path, mu=X.mean(0), sigma=np.cov(X, rowvar=False))
    whole = load_reference_npz(path)
    path.write_bytes(damaged(data, path.read_bytes()))
    found = refused(path)
    if found is not None:
        assert found.count == whole.count
        np.testing.assert_array_equal(found.mean, whole.mean)
        np.testing.assert_array_equal(found.covariance, whole.covariance)


@given(content=st.binary(max_size=400), head=st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04"]))
def test_arbitrary_bytes_are_refused(content: bytes, head: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(head + content)
    assert refused(tmp_path / "s.npz") is None
