"""What judges an edit and what measures its identity: how much ink an image of a digit has, and where it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.tasks.editing.identity import IdentityKind
from fewstep.tasks.metrics.spaces.kind import FeatureKind

CONTENT = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


class Ink:
    """One score, above 0 where more than `share` of the image is inked."""

    name, dim = "ink", 1

    def __init__(self, share: float) -> None:
        self._share, self.hash = share, f"{CONTENT} {share}"

    def __call__(self, images: Any) -> Any:
        """Scores (N, 1), float64."""
        return (images.double().mean(dim=(1, 2, 3)).cpu().numpy()[:, None] + 1) / 2 - self._share


class Moved:
    """Mean absolute difference of two images, in pixels from 0 to 1."""

    name, hash = "moved ink", CONTENT

    def __call__(self, first: Any, second: Any) -> Any:
        """Distances (N,), float64."""
        return np.asarray((first - second).double().abs().mean(dim=(1, 2, 3)).cpu().numpy() / 2)


def judge(argument: str, files: Any, device: str) -> Ink:
    """The judge of `ink:SHARE`."""
    return Ink(float(argument or 0.5))


def moved(argument: str, features: str, files: Any, device: str) -> Moved:
    """The measure; it has no argument."""
    return Moved()


INK = FeatureKind(judge)
MOVED = IdentityKind(moved)
