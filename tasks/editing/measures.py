"""How good edits are: do they show the attribute, is the rest still there, do they look like the real thing.

    success            share of edited images that the judge gives one of the attribute's classes (of all classes)
    identity_pixels    1 - d / d0, d the root mean square difference to the original outside the change region
    identity_features  1 - d / d0, d the distance to the original's features, the attribute's direction left out
    identity           the mean of the two, or 1 - d / d0 by another distance (`identity.py`)

d0 is the mean d between an original and an unrelated real image that has the attribute, so identity is 1 for an
untouched image, and 0 for the trivial edit that puts any image of the wanted class in its place. The change region is
where the attribute shows: the half of the pixels in which the two sides' examples differ most, by standardised mean
difference; the attribute's direction is the difference of their mean features. Both come from the examples of the fit,
never from the edits. Shapes: images (N, C, H, W); features (N, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import DataError
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.interval import Interval, frechet_interval
from fewstep.tasks.metrics.moments import Moments, merge_all

Array = npt.NDArray[np.float64]
LEVEL_Z = 1.959963984540054
FRECHET_GROUPS = 10


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What of an image is not the attribute: pixels outside the change region, features across its direction."""

    outside: Tensor
    direction: Array
    unrelated: Tensor
    extractor: FeatureExtractor

    @classmethod
    def of(cls, positive: Tensor, negative: Tensor, extractor: FeatureExtractor) -> Surroundings:
        """From the examples of both sides."""
        direction = _direction(extractor(positive), extractor(negative))
        return cls(outside_region(positive, negative), direction, positive, extractor)

    def across(self, images: Tensor) -> Array:
        """Features (N, D) without their part along the attribute's direction."""
        found = self.extractor(images)
        return np.asarray(found - np.outer(found @ self.direction, self.direction), np.float64)

    def pixel_distance(self, a: Tensor, b: Tensor) -> Array:
        """Root mean square difference (N,) outside the change region."""
        squares = ((a - b) ** 2).mean(1)[:, self.outside]
        return np.asarray(squares.double().mean(1).sqrt().numpy(), np.float64)


def outside_region(positive: Tensor, negative: Tensor) -> Tensor:
    """(H, W): True for the half of the pixels in which the sides differ least."""
    gap = (positive.mean(0) - negative.mean(0)).abs()
    spread = (0.5 * (positive.var(0) + negative.var(0))).sqrt()
    effect = (gap / (spread + 1e-3)).amax(0).flatten()
    outside = torch.zeros(len(effect), dtype=torch.bool)
    outside[effect.argsort(stable=True)[: len(effect) // 2]] = True
    return outside.view(positive.shape[-2:])


def _direction(positive: Array, negative: Array) -> Array:
    gap = positive.mean(0) - negative.mean(0)
    size = float(np.linalg.norm(gap))
    return np.asarray(gap / size if size > 0 else gap, np.float64)


@dataclass(frozen=True)
class Identity:
    """Identity per image (N,), from 1 for untouched; the parts are those of the built-in measure."""

    both: Array
    pixels: Array | None = None
    features: Array | None = None


class Identities(Protocol):
    """Measures edits of one set of originals (N, C, H, W)."""

    def __call__(self, edited: Tensor) -> Identity:
        """Identity of the edits of all the originals, in their order."""


class MeasuredIdentities:
    """Identity by a distance of images; `unrelated` are images that have the attribute."""

    def __init__(self, originals: Tensor, unrelated: Tensor, distance: Callable[[Tensor, Tensor], Array]) -> None:
        self._originals, self._distance = originals, distance
        self._unit = float(distance(originals, unrelated[torch.arange(len(originals)) % len(unrelated)]).mean())
        if not self._unit > 0:
            raise DataError("identity: images to edit are no further from unrelated ones than from themselves")

    def __call__(self, edited: Tensor) -> Identity:
        """See Identities."""
        return Identity(1 - self._distance(edited, self._originals) / self._unit)


class SurroundingIdentities:
    """The built-in measure: the mean of what is left of pixels and of features, each beside the attribute."""

    def __init__(self, originals: Tensor, surroundings: Surroundings) -> None:
        if len(originals) < 2:
            raise DataError(f"{len(originals)} images to edit: identity is measured against others, give at least 2")
        self._originals, self._surroundings = originals, surroundings
        self._features = surroundings.across(originals)
        others = surroundings.unrelated[torch.arange(len(originals)) % len(surroundings.unrelated)]
        self._pixel_unit = float(surroundings.pixel_distance(originals, others).mean())
        self._feature_unit = float(np.linalg.norm(self._features - surroundings.across(others), axis=1).mean())

    def __call__(self, edited: Tensor) -> Identity:
        """See Identities."""
        pixels = self._surroundings.pixel_distance(edited, self._originals)
        features = np.linalg.norm(self._surroundings.across(edited) - self._features, axis=1)
        kept = 1 - pixels / max(self._pixel_unit, 1e-12), 1 - features / max(self._feature_unit, 1e-12)
        return Identity(0.5 * (kept[0] + kept[1]), *kept)


def proportion(hits: Sequence[bool] | npt.NDArray[np.bool_]) -> Interval:
    """A share with Wilson's 95% interval."""
    n, p = len(hits), float(np.mean(hits)) if len(hits) else 0.0
    if not n:
        return Interval(0.0, 0.0, 1.0)
    z2 = LEVEL_Z**2 / n
    centre, half = p + z2 / 2, LEVEL_Z * float(np.sqrt(p * (1 - p) / n + z2 / (4 * n)))
    return Interval(p, max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2)))


def mean(values: Array) -> Interval:
    """A mean with its 95% interval."""
    value = float(np.mean(values))
    half = LEVEL_Z * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Interval(value, value - half, value + half)


def frechet(features: Array, reference: FrechetReference) -> Interval:
    """Frechet distance of features (N, D) with its jackknife interval over FRECHET_GROUPS groups of images."""
    groups = [Moments.of(part) for part in np.array_split(features, min(FRECHET_GROUPS, len(features)))]
    found = frechet_interval(reference, groups)
    if found is None:
        value = reference.distance(merge_all(groups))
        return Interval(value, float("nan"), float("nan"))
    return found


def balance(success: float, identity: float) -> float:
    """The harmonic mean of the two, 0 where one of them is not positive."""
    return 2 * success * identity / (success + identity) if success > 0 and identity > 0 else 0.0
