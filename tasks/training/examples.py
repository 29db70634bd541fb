"""What the network learns to make, a batch at a time: the images themselves, or latents that were encoded once.

Shapes: images (N, C, H, W); mean and std of a posterior (N, c, h, w); index and mirrored (B,).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Examples(Protocol):
    """N examples of the data; `source` names the weights that made them, empty for the data themselves."""

    source: str

    def __len__(self) -> int:
        """N."""

    def draw(self, index: Tensor, mirrored: Tensor | None, rng: torch.Generator) -> Tensor:
        """The examples `index`, of the mirrored images where `mirrored` says so."""


class Pixels:
    """The images."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.source = images, ""

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, index: Tensor, mirrored: Tensor | None, rng: torch.Generator) -> Tensor:
        """Images (B, C, H, W); nothing is drawn."""
        x0 = self.images[index]
        return x0 if mirrored is None else torch.where(mirrored.view(-1, 1, 1, 1), x0.flip(-1), x0)


class Latents:
    """Scaled samples of posteriors that are kept: mean + std eps, with a new eps at every draw.

    With flips, mean and std hold those of the mirrored images behind the others: a mirrored image's latent is
    not the mirrored latent.
    """

    def __init__(self, mean: Tensor, std: Tensor, scale: float, mirrors: bool = False, source: str = "") -> None:
        self.mean, self.std, self.scale, self.source = mean, std, scale, source
        self._count = len(mean) // 2 if mirrors else len(mean)

    def __len__(self) -> int:
        return self._count

    def draw(self, index: Tensor, mirrored: Tensor | None, rng: torch.Generator) -> Tensor:
        """Latents (B, c, h, w) of unit variance over the data."""
        if mirrored is not None:
            index = index + self._count * mirrored
        mean, std = self.mean[index], self.std[index]
        return self.scale * (mean + std * torch.randn(mean.shape, generator=rng))
