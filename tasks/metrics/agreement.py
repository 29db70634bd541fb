"""How well images keep to what they were conditioned on, as sums over images, so that groups add up.

Shapes: images (N, C, H, W); holes (N, 1, H, W) boolean, True where hidden; layouts (N, H, W) integers below K.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Sums = npt.NDArray[np.float64]


def hole_sums(made: Tensor, truth: Tensor, holes: Tensor) -> Sums:
    """(4,): squared errors of known values and how many they are, the same of hidden ones."""
    square = (made - truth).double().square()
    known = (~holes).expand_as(square)
    parts = square[known], square[~known]
    return np.array([x for part in parts for x in (float(part.sum()), part.numel())], np.float64)


def known_rms(sums: Sums) -> float:
    """Root mean square error of known values."""
    return float(np.sqrt(sums[0] / sums[1]))


def hidden_rms(sums: Sums) -> float:
    """Root mean square error of hidden values."""
    return float(np.sqrt(sums[2] / sums[3]))


def layout_sums(made: Tensor, given: Tensor, classes: int) -> Sums:
    """(K K,): how many pixels of each given class (row) have each class in the made layout (column)."""
    return np.asarray(
        torch.bincount((given * classes + made).flatten().cpu(), minlength=classes**2).numpy(), np.float64
    )


def pixel_accuracy(sums: Sums) -> float:
    """Share of pixels whose class is the given one."""
    return float(np.trace(_square(sums)) / sums.sum())


def mean_iou(sums: Sums) -> float:
    """Intersection over union of all images' pixels, its mean over the classes that occur."""
    matrix = _square(sums)
    both = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - both
    return float((both[union > 0] / union[union > 0]).mean())


def _square(sums: Sums) -> Sums:
    side = round(len(sums) ** 0.5)
    return sums.reshape(side, side)
