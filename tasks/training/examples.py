"""What the network learns to make, a batch at a time: the images themselves, or latents that were encoded once;
and what a condition shows of them.

Shapes: images (N, C, H, W); mean and std of a posterior (N, c, h, w); index and mirrored (B,).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fewstep.tasks.models.image_condition import Encode, ImageCondition
from fewstep.tasks.models.masks import free_form_masks
from fewstep.tasks.models.sources import SPLITS

CHUNK = 500


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


class StoredPixels(Pixels):
    """Images (N, C, H, W) of 8 bits, as they lie on disk."""

    def __init__(self, levels: Tensor, source: str = "") -> None:
        super().__init__(levels)
        self.source = source

    def draw(self, index: Tensor, mirrored: Tensor | None, rng: torch.Generator) -> Tensor:
        """Images (B, C, H, W) in [-1, 1]."""
        return super().draw(index, mirrored, rng).float() / 127.5 - 1


class Latents:
    """Scaled samples of posteriors that are kept: mean + std eps, with a new eps at every draw.

    With flips, mean and std hold those of the mirrored images behind the others: a mirrored image's latent is
    not the mirrored latent. `shift` is taken off before they are scaled.
    """

    def __init__(
        self, mean: Tensor, std: Tensor, scale: float, mirrors: bool = False, source: str = "", shift: float = 0.0
    ) -> None:
        self.mean, self.std, self.scale, self.source, self.shift = mean, std, scale, source, shift
        self._count = len(mean) // 2 if mirrors else len(mean)

    def __len__(self) -> int:
        return self._count

    def draw(self, index: Tensor, mirrored: Tensor | None, rng: torch.Generator) -> Tensor:
        """Latents (B, c, h, w) of unit variance over the data."""
        if mirrored is not None:
            index = index + self._count * mirrored
        mean, std = self.mean[index], self.std[index]
        return self.scale * (mean + std * torch.randn(mean.shape, generator=rng) - self.shift)


class StoredLatents(Latents):
    """Latents as a cache holds them: mean and std (N, c, h, w), or (N, 2, c, h, w) with the mirrored ones."""

    def __init__(self, mean: Tensor, std: Tensor, scale: float, source: str, shift: float) -> None:
        self._both = mean.ndim == 5
        if self._both:
            mean, std = mean.flatten(0, 1), std.flatten(0, 1)
        super().__init__(mean, std, scale, self._both, source, shift)

    def draw(self, index: Tensor, mirrored: Tensor | None, rng: torch.Generator) -> Tensor:
        """Latents (B, c, h, w) of unit variance over the data."""
        if self._both:
            index = 2 * index + (0 if mirrored is None else mirrored)
        return super().draw(index, None, rng)


class Maps:
    """What a condition shows of N images, made once: encoding a picture with a hole at every step costs more.

    For inpainting each image has `holes` holes, drawn from (seed, number) alone; each draw takes one of them.
    `maps` (M N, m, h, w) holds one hole of all images behind the other.
    """

    def __init__(
        self, condition: ImageCondition, images: Tensor, encode: Encode, side: int, holes: int, seed: int
    ) -> None:
        self.condition = condition
        self._count, self._holes = len(images), holes if condition.config.kind == "inpaint" else 1
        parts = []
        with torch.no_grad():
            for number in range(self._holes):
                for at in range(0, len(images), CHUNK):
                    part = images[at : at + CHUNK]
                    first = number * len(images) + at
                    keys = [(seed, SPLITS["train"], i) for i in range(first, first + len(part))]
                    parts.append(condition.maps(part, free_form_masks(images.shape[-1], keys), encode, side))
        self.maps = torch.cat(parts)

    def draw(self, index: Tensor, rng: torch.Generator) -> Tensor:
        """Maps (B, m, h, w) of the images `index`."""
        number = torch.randint(0, self._holes, (len(index),), generator=rng)
        return self.maps[index + self._count * number]
