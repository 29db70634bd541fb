"""Noises that may move a little, so that a schedule need not reach the teacher's sample from the very same one.

LD3 (2405.15506): a few calls cannot follow the teacher from every noise, but from one nearby. Each training noise lies
in a ball around where it was drawn, and follows the gradient there along with the schedule. Published: a radius of
0.001 D / NFE^2 for D numbers an image. A step here is a quarter of the radius along the gradient, whose size differs
from distance to distance; as published, one that does not bring its image nearer is not taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEP = 0.25


def radius(share: float, noise: Tensor, nfe: int) -> float:
    """How far a noise of the shape (N, ...) may move, in L2: `share` of its numbers over the square of the NFE."""
    return share * noise[0].numel() / nfe**2


class SoftTarget:
    """Noises `drawn` (N, ...) and where they are now, at most `radius` away."""

    def __init__(self, drawn: Tensor, radius: float) -> None:
        self.drawn, self.radius = drawn, radius
        self.now = drawn.clone()

    def tried(self, at: Tensor, gradient: Tensor) -> Tensor:
        """Where the noises `at` (B,) would go against their gradient (B, ...); not finite gradients move nothing."""
        flat = torch.nan_to_num(gradient, 0.0, 0.0, 0.0).flatten(1)
        step = self.radius * STEP * torch.nn.functional.normalize(flat, dim=1)
        way = (self.now[at] - self.drawn[at]).flatten(1) - step
        length = way.norm(dim=1, keepdim=True).clamp(min=1e-12)
        way = way * (self.radius / length).clamp(max=1.0)
        where: Tensor = self.drawn[at] + way.view_as(self.drawn[at])
        return where

    def move(self, at: Tensor, where: Tensor, nearer: Tensor) -> None:
        """Take the moves (B, ...) of those that are `nearer` (B,)."""
        self.now[at[nearer]] = where[nearer]
