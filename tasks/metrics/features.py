"""Feature spaces that Frechet distances are measured in.

Shapes: images (N, C, H, W) in [-1, 1]; features (N, D), float64, on the CPU. Figures from different feature
spaces never compare: `name` labels every figure, and `hash` tells two trainings of one network apart.

Images go through the network in slices of `batch_size` from the first one on: the bits of a feature may
depend on the slice it was computed in, so equal calls give equal bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics._network import in_slices, weights_hash
from fewstep.tasks.metrics.inception import InceptionFeatures
from fewstep.tasks.metrics.moments import Array

__all__ = ["ClassifierFeatures", "FeatureExtractor", "FeatureNetwork", "InceptionFeatures"]


class FeatureExtractor(Protocol):
    """Maps images (N, C, H, W) in [-1, 1] to float64 features (N, dim)."""

    @property
    def name(self) -> str:
        """Label of the feature space, such as `fid-digits`."""

    @property
    def dim(self) -> int:
        """Number of features D."""

    @property
    def hash(self) -> str:
        """SHA-256 of the weights, in hexadecimal."""

    def __call__(self, images: Tensor) -> Array: ...


class FeatureNetwork(Protocol):
    """What `ClassifierFeatures` needs of a classifier: any torch module with a `features` method."""

    config: dict[str, int]

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] to features (N, D)."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The weights; the first one tells device and type."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that was learned, by name."""


class ClassifierFeatures:
    """Features of a bundled classifier, for small domains that Inception was never meant for.

    `network` must be in evaluation mode, as `load_classifier` returns it.
    """

    def __init__(self, network: FeatureNetwork, name: str, batch_size: int = 256) -> None:
        self.name = name
        self.dim = network.config["feature_dim"]
        self.hash = weights_hash(network.state_dict())
        self.network = network
        self._batch_size = batch_size

    @classmethod
    def load(cls, folder: Path, name: str, device: str = "cpu") -> ClassifierFeatures:
        """The classifier that `SmallClassifier.save` wrote to `folder`. Raises ModelError as it does."""
        from fewstep.tasks.models.classifier import load_classifier

        return cls(load_classifier(folder, device), name)

    def __call__(self, images: Tensor) -> Array:
        """Features (N, dim) of images (N, C, H, W) in [-1, 1].

        Raises ConfigurationError where the images have other channels or another size than the classifier.
        """
        config = self.network.config
        expected = (config["channels"], config["size"], config["size"])
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ConfigurationError(
                f"{self.name} measures images {expected}; got {tuple(images.shape)}: "
                "choose the feature space of the model's own data"
            )
        weight = next(self.network.parameters())
        return in_slices(self.network.features, images, self._batch_size, self.dim, weight)
