"""Baselines that fill holes without a network.

Shapes: images (B, C, H, W); holes (B, 1, H, W) boolean, True where hidden; training images (N, C, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_fill(images: Tensor, holes: Tensor) -> Tensor:
    """Each channel's mean over an image's known pixels, in its hole."""
    known = (~holes).to(images.dtype)
    mean = (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
    return torch.where(holes, mean, images)


def nearest_fill(images: Tensor, holes: Tensor, training: Tensor) -> Tensor:
    """The hole's pixels of the training image that is nearest in the known ones (the first of equals).

    Squared distances are x^2 m - 2 (x m) t + m t^2 summed, two matrix products; the first term is the same for all t.
    """
    known = (~holes).expand_as(images).to(images.dtype).flatten(1)
    t = training.flatten(1)
    distance = known @ (t * t).T
    distance -= 2 * (images.flatten(1) * known) @ t.T
    return torch.where(holes, training[distance.argmin(1)], images)
