"""Moments merge exactly, grow exactly, and survive storage bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigurationError, DataError, EvaluationError
from fewstep.tasks.metrics.moments import (
    Moments,
    load_npz,
    load_reference_npz,
    merge,
    merge_all,
    save_npz,
)


def features(count: int, dim: int, seed: int = 0, offset: float = 3.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, dim)) @ generator.standard_normal((dim, dim)) + offset


def assert_close(a: Moments, b: Moments, tolerance: float = 1e-12) -> None:
    """Relative to the largest entry: a small covariance between large ones has no digits of its own."""
    assert a.count == b.count
    for x, y in ((a.mean, b.mean), (a.scatter, b.scatter)):
        assert np.abs(x - y).max() <= tolerance * np.abs(y).max()


def assert_same_bits(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    assert a.mean.tobytes() == b.mean.tobytes()
    assert a.scatter.tobytes() == b.scatter.tobytes()


@given(
    counts=st.tuples(*[st.integers(1, 60)] * 3),
    dim=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    offset=st.floats(-5, 5),
)
@settings(max_examples=60, deadline=None)
def test_merging_is_associative_commutative_and_equals_direct(
    counts: tuple[int, int, int], dim: int, seed: int, offset: float
) -> None:
    X = features(sum(counts), dim, seed, offset)
    a, b, c = (Moments.of(part) for part in np.split(X, np.cumsum(counts)[:2]))
    direct = Moments.of(X)
    assert_close(merge(merge(a, b), c), direct)
    assert_close(merge(a, merge(b, c)), direct)
    assert_close(merge(c, merge(b, a)), direct)
    assert_close(merge_all([a, b, c]), direct)


def test_growing_from_1000_to_5000_equals_5000_at_once() -> None:
    X = features(5000, 32)
    assert_close(merge(Moments.of(X[:1000]), Moments.of(X[1000:])), Moments.of(X))


def test_merging_in_the_same_order_gives_the_same_bits() -> None:
    groups = [Moments.of(features(20, 5, seed)) for seed in range(6)]
    assert_same_bits(merge_all(groups), merge_all(list(groups)))


def test_merging_keeps_its_digits_far_from_zero() -> None:
    X = features(2000, 4, offset=1e6)
    assert_close(merge(Moments.of(X[:700]), Moments.of(X[700:])), Moments.of(X), 1e-9)


@given(counts=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_without_undoes_merge(counts: tuple[int, int], seed: int) -> None:
    a, b = (Moments.of(features(count, 5, seed + i)) for i, count in enumerate(counts))
    total = merge(a, b)
    left = total.without(b)
    assert left.count == a.count
    np.testing.assert_allclose(left.mean, a.mean, atol=1e-11 * np.abs(total.mean).max() * sum(counts))
    np.testing.assert_allclose(left.scatter, a.scatter, atol=1e-11 * np.abs(total.scatter).max())


def test_covariance_is_numpys_and_exactly_symmetric() -> None:
    X = features(50, 7).astype(np.float32)
    moments = Moments.of(X)
    np.testing.assert_allclose(moments.covariance, np.cov(X.astype(np.float64), rowvar=False), rtol=1e-12)
    merged = merge(moments, Moments.of(features(9, 7, 1)))
    for scatter in (moments.scatter, merged.scatter):
        assert np.array_equal(scatter, scatter.T)


def test_one_image_has_moments_but_no_covariance() -> None:
    moments = Moments.of(np.ones((1, 3)))
    assert np.array_equal(moments.scatter, np.zeros((3, 3)))
    with pytest.raises(EvaluationError, match="at least 2"):
        _ = moments.covariance


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 3, 4)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"\(N, D\)"):
        Moments.of(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged_features_are_named(value: float) -> None:
    X = features(10, 3)
    X[4, 1] = value
    with pytest.raises(EvaluationError, match="1 of 10 feature vectors"):
        Moments.of(X)


def test_groups_that_do_not_belong_together_are_refused() -> None:
    a, b = Moments.of(features(5, 3)), Moments.of(features(5, 4))
    with pytest.raises(ConfigurationError, match="3 and of 4"):
        merge(a, b)
    with pytest.raises(ConfigurationError, match="at least one"):
        merge_all([])
    with pytest.raises(ConfigurationError, match="take 5 images out of 5"):
        a.without(a)
    with pytest.raises(ConfigurationError, match="count"):
        Moments(0, a.mean, a.scatter)


@given(count=st.integers(1, 20), dim=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_bytes_round_trip_bit_for_bit(count: int, dim: int, seed: int) -> None:
    moments = Moments.of(features(count, dim, seed))
    mean, scatter = moments.to_bytes()
    assert_same_bits(Moments.from_bytes(mean, scatter, count, dim), moments)


def test_torn_bytes_are_refused() -> None:
    mean, scatter = Moments.of(features(5, 3)).to_bytes()
    for torn in ((mean[:-1], scatter, 3), (mean, scatter[:-8], 3), (mean, scatter, 4)):
        with pytest.raises(DataError, match="damaged"):
            Moments.from_bytes(torn[0], torn[1], 5, torn[2])


def test_npz_round_trip_bit_for_bit(tmp_path: Path) -> None:
    moments = Moments.of(features(30, 6))
    path = tmp_path / "reference.npz"
    save_npz(path, moments)
    assert_same_bits(load_npz(path), moments)
    reference = load_reference_npz(path)
    assert reference.count == 30
    assert np.array_equal(reference.covariance, moments.covariance)
    assert [file.name for file in tmp_path.iterdir()] == ["reference.npz"]


def test_pytorch_fids_npz_is_a_reference_without_a_count(tmp_path: Path) -> None:
    X = features(30, 6)
    path = tmp_path / "stats.npz"
    np.savez_compressed(path, mu=X.mean(axis=0), sigma=np.cov(X, rowvar=False))
    reference = load_reference_npz(path)
    assert reference.count is None
    np.testing.assert_allclose(reference.covariance, Moments.of(X).covariance, rtol=1e-12)
    with pytest.raises(DataError, match="not fewstep moments"):
        load_npz(path)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    save_npz(good, Moments.of(features(30, 6)))
    whole = good.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not numbers"):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz is not a readable"):
            load_reference_npz(bad)
    with pytest.raises(DataError, match="no moments at"):
        load_reference_npz(tmp_path / "absent.npz")

    cases: list[tuple[dict[str, object], str]] = [
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, "do not fit"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "sigma holds"),
        ({"mu": np.array(["a"]), "sigma": np.zeros((1, 1))}, "mu holds"),
        ({"count": 5, "mean": np.zeros(3), "scatter": np.zeros(3)}, "do not fit"),
        ({"count": 1, "mean": np.zeros(1), "scatter": np.zeros(1)}, "one image"),
        ({"images": np.zeros(3)}, "images"),
    ]
    for arrays, message in cases:
        np.savez(bad, **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=message):
            load_reference_npz(bad)
    array = tmp_path / "array.npz"
    with array.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="not a readable"):
        load_reference_npz(array)
