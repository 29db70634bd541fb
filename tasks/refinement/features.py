"""What a subject's judge sees of samples: features of their images, and the distance to the reference.

Any extractor will do for a descent on moments. A distance that is descended by gradient needs features that gradients
pass through, which those of a classifier are (the model's own, or a folder), and those of any network of PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics.extractor import feature_kind
from fewstep.tasks.metrics.features import ClassifierFeatures
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.metrics.spaces.network import NetworkFeatures
from fewstep.tasks.models.decoder import load_decoder
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.refinement.plan import GRADIENT_DISTANCES

Array = npt.NDArray[np.float64]
# Distances that schedules are tuned to, and those of them whose gradient passes through features.
DISTANCES = (*GRADIENT_DISTANCES, "moments")
THROUGH_FEATURES = ("reference", "features")
# Of a covariance's eigenvalues: below it a square root's slope says nothing.
SMALLEST_EIGENVALUE = 1e-10
# Of the features, in which moments are told: what a few hundred images can tell of a covariance, at a bearable price.
MOST_DIRECTIONS = 96


def check_tunable(setting: Setting, distance: str) -> None:
    """ConfigurationError where schedules cannot be tuned to this distance in the subject's features; loads little.

    That features and reference are there is for `FeatureMetric.check` to say.
    """
    if distance not in DISTANCES:
        raise ConfigurationError(f"unknown distance {distance!r}: choose from {', '.join(DISTANCES)}")
    if distance not in THROUGH_FEATURES:
        return
    given = setting.subject.features
    passed = feature_kind(given, setting.files)[0].gradients
    # Whether a callable's do, only what it gives can say.
    if not (passed and getattr(setting.extractor, "gradients", True)):
        raise ConfigurationError(
            f"the distance {distance!r} needs gradients through its features, which those of {given!r} do not pass "
            "(Inception's see 8-bit images): give --features a classifier's folder or a network of PyTorch's, or tune "
            "to 'moments' or 'network'"
        )


class Judge:
    """Features (B, D) in float64 of samples as they will be judged, and `frechet`, the distance to the reference.

    All is loaded when it is first asked for. With `most`, features are their coordinates in at most so many leading
    principal directions of the reference's covariance, and the distance is the one in them: where D is no larger,
    nothing changes. Clipped, so that a pixel beyond the range has no gradient.
    """

    def __init__(
        self,
        setting: Setting,
        denoiser: Denoiser,
        decode: Callable[[Tensor], Tensor] | None = None,
        most: int | None = None,
    ) -> None:
        self._setting, self._denoiser, self._given, self._most = setting, denoiser, decode, most

    def leading(self) -> Judge:
        """The same in few directions, for what costs more than in proportion to their number."""
        return Judge(self._setting, self._denoiser, self._decode, MOST_DIRECTIONS)

    def __call__(self, samples: Tensor, indices: Sequence[int]) -> Tensor:
        """`indices` name the images, parts of which may be known. Gradients pass through a classifier's features."""
        features = self._of(self._images(samples, indices).clamp(-1, 1))
        return features if self._basis is None else features @ self._basis.to(features)

    def unclipped(self, samples: Tensor, indices: Sequence[int]) -> Tensor:
        """Features (B, D) of samples as they are, all of them."""
        return self._of(self._images(samples, indices))

    def _images(self, samples: Tensor, indices: Sequence[int]) -> Tensor:
        return self._denoiser.finish(self._decode(samples), indices)

    def _of(self, images: Tensor) -> Tensor:
        extractor = self._setting.extractor
        if isinstance(extractor, ClassifierFeatures):
            return extractor.network.features(images).double()
        if isinstance(extractor, NetworkFeatures) and images.requires_grad:
            return extractor.tensor(images).double()
        return torch.from_numpy(extractor(images)).to(images.device)

    def check(self, distance: str) -> None:
        """See `check_tunable`."""
        check_tunable(self._setting, distance)

    @cached_property
    def frechet(self) -> Frechet:
        """The distance in these features."""
        reference = self._setting.reference[0]
        if self._basis is None:
            return Frechet(reference.mean, reference.covariance)
        V = self._basis.numpy()
        return Frechet(reference.mean @ V, V.T @ reference.covariance @ V)

    @cached_property
    def _decode(self) -> Callable[[Tensor], Tensor]:
        return self._given or load_decoder(self._denoiser.files, self._denoiser.device)

    @cached_property
    def _basis(self) -> Tensor | None:
        """Columns (D, most), orthonormal; None for all directions as they are."""
        if self._most is None or self._setting.extractor.dim <= self._most:
            return None
        covariance = np.asarray(self._setting.reference[0].covariance, np.float64)
        dim = len(covariance)
        _, vectors = scipy.linalg.eigh(covariance, subset_by_index=(dim - self._most, dim - 1))
        return torch.from_numpy(np.ascontiguousarray(vectors))


class Frechet:
    """Squared Frechet distance to a Gaussian, differentiable. See `tasks.metrics.frechet`."""

    def __init__(self, mean: Array, covariance: Array) -> None:
        values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
        root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
        self._mean, self._root = torch.from_numpy(np.array(mean, np.float64)), torch.from_numpy(root)
        self._trace = float(np.trace(covariance))

    def __call__(self, features: Tensor) -> Tensor:
        """The distance of features (N, D); N must exceed 1."""
        return self.of(features.mean(0), torch.cov(features.T))

    def of(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """The distance of a Gaussian with that mean (D,) and covariance (D, D)."""
        root = self._root.to(covariance)
        eigenvalues = torch.linalg.eigvalsh(root @ covariance @ root)
        overlap = eigenvalues.clamp_min(SMALLEST_EIGENVALUE).sqrt().sum()
        distance: Tensor = (mean - self._mean.to(mean)).square().sum() + covariance.trace() + self._trace - 2 * overlap
        return distance
