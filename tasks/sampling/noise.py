"""Starting noise as a pure function of (seed, index): the same for every batch, worker and machine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def image_noise(
    seed: int, index: int, shape: tuple[int, ...], stream: int = 0
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Standard normal noise of one image. `stream` 0 is the starting noise, others are free for later steps."""
    bits = np.random.Philox(key=np.array([seed, index], np.uint64), counter=[0, 0, 0, stream])
    return np.random.Generator(bits).standard_normal(shape).astype(np.float32)


def starting_noise(seed: int, start: int, count: int, shape: tuple[int, ...], device: str = "cpu") -> Tensor:
    """Noise (count, *shape) of images start .. start + count - 1 under `seed`."""
    return torch.from_numpy(np.stack([image_noise(seed, i, shape) for i in range(start, start + count)])).to(device)
