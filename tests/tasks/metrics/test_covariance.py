"""Statistics that tools write are read, few images and single precision included; what is no covariance is refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.errors import DataError
from fewstep.tasks.metrics.covariance import TOLERANCE, flaw
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.moments import Moments, load_reference_npz


def features(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Like a network's: float32, correlated, not negative, with a spectrum that falls."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(9).standard_normal((dim, dim)))[0]
    scale = 6.0 * np.arange(1, dim + 1) ** -0.7
    return np.maximum(rng.standard_normal((count, dim)) * scale @ basis.T + 0.2, 0).astype(np.float32)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def by_sums(X: np.ndarray) -> np.ndarray:
    """The covariance as E[x x^T] - mu mu^T in single precision, which loses most digits."""
    mu = X.mean(0)
    return X.T @ X / np.float32(len(X)) - np.outer(mu, mu)


@pytest.mark.parametrize(("count", "dim"), [(10, 64), (50, 64), (5000, 64), (60, 400)])
def test_statistics_of_few_images_in_single_and_double_precision_are_read(count: int, dim: int, tmp_path: Path) -> None:
    X = features(count, dim)
    mu, sigma = X.mean(0), np.cov(X, rowvar=False)
    truth = FrechetReference(mu, sigma, count).distance(Moments.of(features(300, dim, 5)))
    for kept in (sigma, sigma.astype(np.float32), sigma.astype(">f8"), by_sums(X)):
        reference = load_reference_npz(saved(tmp_path / "s.npz", mu=mu, sigma=kept))
        assert reference.covariance.dtype == np.float64
        distance = FrechetReference.of(reference).distance(Moments.of(features(300, dim, 5)))
        # The sums' covariance is that of N, not of N - 1.
        assert distance == pytest.approx(truth, rel=0.05 if kept.dtype == np.float32 else 1e-3)


def test_three_digits_serve_where_images_are_many_and_not_where_they_are_few(tmp_path: Path) -> None:
    many, few = (np.cov(features(count, 64), rowvar=False) for count in (5000, 10))
    load_reference_npz(saved(tmp_path / "many.npz", mu=np.zeros(64), sigma=many.astype(np.float16)))
    with pytest.raises(DataError, match=r"few\.npz: sigma has eigenvalues down to -"):
        load_reference_npz(saved(tmp_path / "few.npz", mu=np.zeros(64), sigma=few.astype(np.float16)))


def test_the_bound_lies_where_it_is_said_to(tmp_path: Path) -> None:
    for times, refused in ((0.5, False), (2.0, True)):
        assert bool(flaw(np.diag([-times * TOLERANCE, 1.0]))) is refused
        assert bool(flaw(np.array([[1.0, 0.5], [0.5 - times * TOLERANCE, 1.0]]))) is refused
    assert flaw(np.zeros((3, 3))) == ""
    assert flaw(np.diag([0.0, 1e-300])) == ""
    assert "too large" in flaw(np.full((2, 2), 1e308)) or flaw(np.full((2, 2), 1e308)) == ""


def test_further_keys_of_other_tools_are_not_read(tmp_path: Path) -> None:
    X = features(100, 5)
    usual = {"mu": X.mean(0), "sigma": np.cov(X, rowvar=False)}
    others: list[Mapping[str, Any]] = [
        {"mu_s": np.zeros(7), "sigma_s": np.zeros((7, 7)), "arr_0": np.zeros((2, 8, 8, 3), np.uint8)},
        {"labels": np.array(["a", "b"]), "n": np.array(np.nan)},
        {"config": np.array({"a": 1}, dtype=object)},
        {"mean": np.zeros(2)},
    ]
    for other in others:
        reference = load_reference_npz(saved(tmp_path / "s.npz", **usual, **other))
        np.testing.assert_array_equal(reference.covariance, usual["sigma"])


RANDOM = np.random.default_rng(1).standard_normal((4, 4))
GOOD = np.cov(features(50, 4), rowvar=False)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(4), "sigma": -GOOD}, "sigma has eigenvalues down to -"),
        ({"mu": np.zeros(4), "sigma": np.triu(GOOD)}, r"not symmetric: entry \(\d, \d\) is"),
        ({"mu": np.zeros(4), "sigma": RANDOM}, "not symmetric"),
        ({"mu": np.zeros(4), "sigma": RANDOM + RANDOM.T}, "eigenvalues down to -"),
        ({"mu": np.zeros(4), "sigma": GOOD - 0.5 * np.trace(GOOD) * np.eye(4)}, "eigenvalues down to -"),
        ({"mu": np.zeros(4), "sigma": GOOD + 0j}, "sigma holds values of type complex128"),
        ({"mu": np.zeros(4) * 1j, "sigma": GOOD}, "mu holds values of type complex128"),
        ({"mu": np.zeros(4), "sigma": np.eye(4, dtype=int)}, "sigma holds values of type int64"),
        ({"mu": np.zeros(4, bool), "sigma": GOOD}, "mu holds values of type bool"),
        ({"mu": np.zeros(4), "sigma": GOOD.astype(object)}, "Object arrays"),
        ({"mu": np.zeros(4), "sigma": np.where(np.eye(4) > 0, np.inf, GOOD)}, "sigma holds 4 values"),
        ({"mu": np.zeros((1, 4)), "sigma": GOOD}, r"mu \(1, 4\) and sigma \(4, 4\) do not fit"),
        ({"mu": np.zeros(4), "sigma": GOOD[:3]}, r"sigma \(3, 4\)"),
        ({"mu": np.zeros(4), "sigma": GOOD.ravel()}, r"sigma \(16,\)"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "do not fit"),
        ({"mu": np.float64(1), "sigma": np.float64(1)}, "do not fit"),
        ({"count": 9, "mean": np.zeros(2), "scatter": np.array([1.0, 0.0, -1.0])}, "scatter has eigenvalues down to -"),
        ({"count": 9.5, "mean": np.zeros(2), "scatter": np.ones(3)}, "count holds values of type float64"),
        ({"count": -9, "mean": np.zeros(2), "scatter": np.ones(3)}, "do not fit"),
        ({"mean": np.zeros(4), "cov": GOOD}, "holds cov, mean: not fewstep moments"),
        ({"mu": np.zeros(4)}, "holds mu: not fewstep moments"),
        ({"arr_0": np.zeros((4, 4))}, "holds arr_0"),
        ({}, "holds nothing"),
    ],
)
def test_statistics_that_are_none_say_what_is_wrong(arrays: Mapping[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as refused:
        load_reference_npz(saved(tmp_path / "s.npz", **arrays))
    assert str(tmp_path / "s.npz") in str(refused.value)


def test_archives_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    def archive(header: bytes) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as file:
            for key in ("mu", "sigma"):
                file.writestr(f"{key}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        return target.getvalue()

    huge = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}"
    for content in (archive(huge), archive(b"{'descr':"), archive(b""), b"PK\x05\x06" + bytes(18)[:9], b"\x80\x04."):
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"s\.npz is not a readable \.npz file"):
            load_reference_npz(tmp_path / "s.npz")
    with pytest.raises(DataError, match="directory"):
        load_reference_npz(tmp_path)
