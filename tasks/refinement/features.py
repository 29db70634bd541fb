"""What a model's own judge sees of samples: features of its classifier, and the distance to its reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.reference import load_reference
from fewstep.tasks.models.classifier import load_classifier
from fewstep.tasks.models.decoder import load_decoder
from fewstep.tasks.models.denoiser import Denoiser

Array = npt.NDArray[np.float64]
# Of a covariance's eigenvalues: below it a square root's slope says nothing.
SMALLEST_EIGENVALUE = 1e-10


class OwnFeatures:
    """Features (B, D) in float64 of samples as they will be judged, and `frechet`, the distance to the reference.

    Clipped, so that a pixel beyond the range has no gradient.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        files, folder = denoiser.files, denoiser.files.root / "classifier"
        if not folder.is_dir() or not Path(files.root / "reference.npz").is_file():
            raise ConfigurationError(
                f"{files.name} brings no classifier and reference of its own: use a distance to a teacher"
            )
        self._network = load_classifier(folder, denoiser.device).requires_grad_(False)
        self._decode = load_decoder(files, denoiser.device)
        reference, _ = load_reference("auto", files, "auto", make_extractor("auto", files, denoiser.device))
        self.frechet = Frechet(reference.mean, reference.covariance)

    def __call__(self, samples: Tensor) -> Tensor:
        return self._network.features(self._decode(samples).clamp(-1, 1)).double()


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
