"""First and second moments of features: computed once per shard, merged exactly, stored as bytes.

Shapes: features (N, D), mean (D,), scatter and covariance (D, D); all float64, in units of the features.
Scatter is the sum of outer products of deviations from the mean, so the unbiased covariance is
scatter / (N - 1), the one that pytorch-fid takes from numpy.cov.

Source of the merging rule: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for
computing sample variances", equation 1.5, for matrices.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.errors import ConfigurationError, DataError, EvaluationError
from fewstep.tasks.metrics.covariance import flaw

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of `count` feature vectors: mean (D,) and scatter (D, D).

    Raises ConfigurationError where the shapes do not fit or `count` is below 1.
    """

    count: int
    mean: Array
    scatter: Array

    def __post_init__(self) -> None:
        if self.count < 1 or self.mean.ndim != 1 or self.scatter.shape != 2 * self.mean.shape:
            raise ConfigurationError(
                f"moments need a count of at least 1, a mean (D,) and a scatter (D, D); got count "
                f"{self.count}, mean {self.mean.shape}, scatter {self.scatter.shape}"
            )

    @classmethod
    def of(cls, features: ArrayLike) -> Moments:
        """Moments of features (N, D), N at least 1, accumulated in float64.

        Raises ConfigurationError for another shape, EvaluationError for values that are not finite.
        """
        X = np.asarray(features, dtype=np.float64)
        if X.ndim != 2 or X.shape[0] < 1:
            raise ConfigurationError(f"features must be (N, D) with N at least 1; got shape {X.shape}")
        broken = int((~np.isfinite(X).all(axis=1)).sum())
        if broken:
            raise EvaluationError(f"{broken} of {len(X)} feature vectors are not finite: the sampled images diverged")
        mean = X.mean(axis=0)
        X = X - mean
        return cls(len(X), mean, X.T @ X)

    @property
    def dim(self) -> int:
        """Number of features D."""
        return len(self.mean)

    @property
    def covariance(self) -> Array:
        """Unbiased covariance (D, D), equal to numpy.cov(features, rowvar=False).

        Raises EvaluationError where there are fewer than 2 images.
        """
        if self.count < 2:
            raise EvaluationError("a covariance needs at least 2 images; got 1: evaluate more images")
        return self.scatter / (self.count - 1)

    def without(self, group: Moments) -> Moments:
        """Moments of the images that are not in `group`, the inverse of `merge`, in O(D^2).

        Raises ConfigurationError where `group` is not a proper part of these moments.
        """
        _same_dim(self, group)
        count = self.count - group.count
        if count < 1:
            raise ConfigurationError(f"cannot take {group.count} images out of {self.count}")
        mean = (self.count * self.mean - group.count * group.mean) / count
        delta = group.mean - mean
        scale = count * group.count / self.count
        return Moments(count, mean, self.scatter - group.scatter - scale * np.outer(delta, delta))

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Mean and packed upper triangle of the scatter (row by row), float64 little-endian."""
        return self.mean.astype("<f8").tobytes(), _packed(self.scatter).astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, mean: bytes, scatter: bytes, count: int, dim: int) -> Moments:
        """What `to_bytes` wrote, bit for bit. Raises DataError where the lengths do not fit `dim`."""
        expected = (8 * dim, 4 * dim * (dim + 1))
        if (len(mean), len(scatter)) != expected:
            raise DataError(
                f"stored moments of {dim} features are damaged: expected {expected} bytes, "
                f"got ({len(mean)}, {len(scatter)})"
            )
        return cls(count, _floats(mean), _unpacked(_floats(scatter), dim))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of images. Raises ConfigurationError for unequal D."""
    _same_dim(a, b)
    count = a.count + b.count
    delta = b.mean - a.mean
    scale = a.count * b.count / count
    return Moments(
        count,
        a.mean + delta * (b.count / count),
        a.scatter + b.scatter + scale * np.outer(delta, delta),
    )


def merge_all(groups: Sequence[Moments]) -> Moments:
    """Merge in the given order, from the left: the same order gives the same bits.

    Raises ConfigurationError where `groups` is empty or the numbers of features differ.
    """
    if not groups:
        raise ConfigurationError("no moments to merge: give at least one group")
    total = groups[0]
    for group in groups[1:]:
        total = merge(total, group)
    return total


@dataclass(frozen=True, eq=False)
class ReferenceMoments:
    """Mean (D,) and covariance (D, D) of a reference set; `count` is None where the file did not say."""

    mean: Array
    covariance: Array
    count: int | None


def save_npz(path: Path | str, moments: Moments) -> None:
    """Write `moments` to `path` at once: a reader sees the old file or the new one."""
    _save(path, _own(moments))


def _own(moments: Moments) -> dict[str, Any]:
    return {"count": moments.count, "mean": moments.mean, "scatter": _packed(moments.scatter)}


def _save(path: Path | str, arrays: Mapping[str, Any]) -> None:
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def save_reference_npz(path: Path | str, moments: Moments) -> None:
    """The same with pytorch-fid's `mu` (D,) and `sigma` (D, D) besides, for other programs."""
    _save(path, {**_own(moments), "mu": moments.mean, "sigma": moments.covariance})


def load_npz(path: Path | str) -> Moments:
    """What `save_npz` wrote. Raises DataError where the file is missing, damaged or of another kind."""
    return _own_moments(path, _read(path))


def load_reference_npz(path: Path | str) -> ReferenceMoments:
    """Reference moments from fewstep's .npz, or from one with the keys mu (D,) and sigma (D, D), which has no count.

    pytorch-fid, clean-fid, EDM, guided-diffusion and others write the latter; what else is in the file is not read.
    Raises DataError where the file is missing, damaged or of another kind, where values are no finite real numbers,
    and where sigma is no covariance.
    """
    arrays = _read(path)
    if "mu" in arrays:
        mean, covariance, count = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64), None
        if mean.ndim != 1 or mean.size == 0 or covariance.shape != 2 * mean.shape:
            raise DataError(
                f"{path}: mu {mean.shape} and sigma {covariance.shape} do not fit: they are (D,) and (D, D)"
            )
    else:
        moments = _own_moments(path, arrays)
        if moments.count < 2:
            raise DataError(f"{path} holds the moments of one image: a reference needs more")
        mean, covariance, count = moments.mean, moments.covariance, moments.count
    if found := flaw(covariance):
        raise DataError(
            f"{path}: {'sigma' if count is None else 'scatter'} {found}: no covariance; make the file again"
        )
    return ReferenceMoments(mean, covariance, count)


# What is read of a file, the first of these that is all there.
KINDS = (("count", "mean", "scatter"), ("mu", "sigma"))


def _read(path: Path | str) -> dict[str, NDArray[Any]]:
    """The arrays of one of KINDS; DataError where the file holds none of them, or no finite numbers."""
    arrays, keys = {}, []
    try:
        with open(path, "rb") as file:
            archive: Any = np.load(file)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is one array")
            keys = sorted(archive.files)
            kind = next((names for names in KINDS if set(names) <= set(keys)), ())
            arrays = {key: np.asarray(archive[key]) for key in kind}
    except FileNotFoundError as error:
        raise DataError(f"no moments at {path}: check the path") from error
    # Damaged archives are answered with whatever breaks first, from zlib.error to MemoryError.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} is not a readable .npz file ({reason}): make it again") from error
    if not arrays:
        raise DataError(
            f"{path} holds {', '.join(keys) or 'nothing'}: not fewstep moments (count, mean, scatter), and no "
            "statistics (mu, sigma)"
        )
    for key, array in arrays.items():
        wanted = np.integer if key == "count" else np.floating
        if not np.issubdtype(array.dtype, wanted):
            raise DataError(
                f"{path}: {key} holds values of type {array.dtype}, not "
                f"{'whole' if key == 'count' else 'real floating-point'} numbers: make it again"
            )
        if broken := int((~np.isfinite(array)).sum()):
            raise DataError(f"{path}: {key} holds {broken} values that are not finite: make it again")
    return arrays


def _own_moments(path: Path | str, arrays: dict[str, NDArray[Any]]) -> Moments:
    if "count" not in arrays:
        raise DataError(f"{path} holds {', '.join(arrays)}: not fewstep moments (count, mean, scatter)")
    count, mean, scatter = arrays["count"], arrays["mean"], arrays["scatter"]
    dim = mean.size
    fits = count.shape == () and mean.ndim == 1 and dim > 0 and scatter.shape == (dim * (dim + 1) // 2,)
    if not fits or count < 1:
        raise DataError(f"{path}: count, mean {mean.shape} and packed scatter {scatter.shape} do not fit")
    return Moments(int(count), mean.astype(np.float64), _unpacked(scatter.astype(np.float64), dim))


def _same_dim(a: Moments, b: Moments) -> None:
    if a.dim != b.dim:
        raise ConfigurationError(
            f"moments of {a.dim} and of {b.dim} features do not belong together: use one feature space"
        )


def _floats(data: bytes) -> Array:
    return np.frombuffer(data, "<f8").astype(np.float64)


def _packed(matrix: Array) -> Array:
    return matrix[np.triu_indices(len(matrix))]


def _unpacked(triangle: Array, dim: int) -> Array:
    matrix = np.empty((dim, dim))
    rows, columns = np.triu_indices(dim)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix
