"""Free-form holes: strokes of a round brush and boxes, a function of a key of integers alone.

In the manner of "Free-Form Image Inpainting with Gated Convolution" (1806.03589, appendix B), at the sizes of small
images: a fifth of an image is hidden on average, between 7% and 36% of nine in ten.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Mask = npt.NDArray[np.bool_]


def free_form_mask(side: int, *key: int) -> Mask:
    """A hole (side, side), True where pixels are hidden; one pixel at least is hidden, and one is not."""
    rng = np.random.default_rng(key)
    hole = np.zeros((side, side), bool)
    if rng.random() < 0.6:
        height, width = rng.integers(side // 4, 3 * side // 5 + 1, 2)
        top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        hole[top : top + height, left : left + width] = True
    if not hole.any() or rng.random() < 0.5:
        hole |= _stroke(side, rng)
    if hole.all():
        hole[0, 0] = False
    return hole


def free_form_masks(side: int, keys: Iterable[tuple[int, ...]]) -> Tensor:
    """Holes (N, 1, side, side) of many keys, boolean."""
    return torch.from_numpy(np.stack([free_form_mask(side, *key) for key in keys])[:, None])


def _stroke(side: int, rng: np.random.Generator) -> Mask:
    """The pixels within a brush's radius of a bent line that starts inside and is held inside."""
    turns = int(rng.integers(3, 7))
    lengths, angles = rng.uniform(0.2, 0.45, turns) * side, np.cumsum(rng.uniform(-1.2, 1.2, turns))
    points = [rng.uniform(0, side - 1, 2)]
    angles += rng.uniform(0, 2 * np.pi)
    for length, angle in zip(lengths, angles, strict=True):
        step = length * np.array([np.sin(angle), np.cos(angle)])
        points.append(np.clip(points[-1] + step, 0, side - 1))
    starts, ends = np.array(points[:-1]), np.array(points[1:])
    along = ends - starts
    pixels = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 1, 2)
    share = ((pixels - starts) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
    nearest = starts + np.clip(share, 0, 1)[..., None] * along
    distance = np.sqrt(((pixels - nearest) ** 2).sum(-1)).min(1)
    within: Mask = (distance <= max(0.75, rng.uniform(0.06, 0.12) * side)).reshape(side, side)
    return within
