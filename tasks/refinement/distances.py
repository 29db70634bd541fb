"""How far a student's samples are from its teacher's, so that gradients pass.

`pixel` is the mean square over all numbers of a sample. `network` compares what the denoiser's own middle block says
about both, at one noise level and under the same noise (2401.00110, section 4): it knows the model's images, needs no
further weights, works on latents, and shares nothing with a classifier or Inception that judges later. `features`
compares the features that its Frechet distance is measured in, where they are a classifier's, so its gain there may be
flattered; unclipped, so that pixels beyond the range have a gradient.

Shapes: samples (B, C, H, W); distances (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.refinement.execute import Cost, counted
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.sampling.noise import image_noise

Features = Callable[[Tensor, Sequence[int]], Tensor]
# Half log-SNR of the noise under which the network looks at samples: edges are gone, shapes are not.
LOOK_LAMBDA = 0.5
# A stream of an image's random numbers that no sampler and no measurement of statistics uses.
LOOK_STREAM = 2
# A little of the pixels' distance keeps directions in check that features do not see.
PIXEL_SHARE = 0.1


class Distance:
    """Mean square between features, and a share of the one between pixels; what calls it needs go to `cost`."""

    def __init__(self, name: str, denoiser: Denoiser, seed: int, cost: Cost, judge: Judge | None = None) -> None:
        self._seed, self._denoiser, self.cost = seed, denoiser, cost
        self._features: Features | None = None
        if name == "network":
            self._features = self._middle
        elif name == "features":
            self._features = judged(name, judge).unclipped
        elif name != "pixel":
            raise ConfigurationError(f"unknown distance {name!r}: choose pixel, network or features")

    def features(self, samples: Tensor, indices: Sequence[int]) -> Tensor | None:
        """Features (B, ...) of samples, None where only pixels count. `indices` name the samples' noise."""
        return None if self._features is None else self._features(samples, indices)

    def __call__(self, samples: Tensor, target: Tensor, seen: Tensor | None, indices: Sequence[int]) -> Tensor:
        """Distances (B,) to the targets, whose features are `seen`."""
        pixels = (samples - target).square().flatten(1).mean(1)
        found = self.features(samples, indices)
        if found is None or seen is None:
            return pixels
        return (found - seen).square().flatten(1).mean(1) + PIXEL_SHARE * pixels

    def _middle(self, samples: Tensor, indices: Sequence[int]) -> Tensor:
        files = self._denoiser.files
        alpha, sigma = files.noise.alpha_sigma(LOOK_LAMBDA)
        shape = tuple(samples.shape[1:])
        noise = np.stack([image_noise(self._seed, i, shape, LOOK_STREAM) for i in indices])
        x = alpha * samples + sigma * torch.from_numpy(noise).to(samples)
        found: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        hook = _middle_of(self._denoiser.network.module).register_forward_hook(keep)
        try:
            call = counted(self._denoiser.on(indices), self.cost)
            call(x * files.noise.input_scale(LOOK_LAMBDA), files.noise.time(LOOK_LAMBDA))
        finally:
            hook.remove()
        seen: Tensor = found[0]
        unit: Tensor = torch.nn.functional.normalize(seen, dim=1)
        return unit * math.sqrt(seen.shape[1])


def judged(distance: str, judge: Judge | None) -> Judge:
    """The judge, where gradients pass through its features; ConfigurationError otherwise."""
    if judge is None:
        raise ConfigurationError(f"the distance {distance!r} is one in a judge's features: give one")
    judge.check(distance)
    return judge


def _middle_of(module: Any) -> torch.nn.Module:
    """The middle of a UNet, or the middle one of a transformer's blocks."""
    middle = getattr(module, "mid_block", None)
    if isinstance(middle, torch.nn.Module):
        return middle
    blocks = getattr(module, "transformer_blocks", None)
    if blocks is None or not len(blocks):
        raise ConfigurationError("this network has no middle block to look through: use the distance 'pixel'")
    block: torch.nn.Module = blocks[len(blocks) // 2]
    return block
