"""Networks that are told t in [0, 1], told 1000 t instead: the same function of t, by other weights of its first layer.

A network sees sinusoids of its time, cos(t f) and sin(t f), through a linear layer. Over [0, 1] those of slow
frequencies are nearly polynomials, and each of them is a sum of the slow sinusoids of 1000 t (to about 1e-7). Put into
the layer, the sum costs nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ModelError

SCALE = 1000.0
# Sinusoids of 1000 t that turn faster are not used: they would only add rounding.
FASTEST = 12.0
POINTS, SMALLEST = 400, 1e-12
LARGEST_ERROR = 2e-6

Array = npt.NDArray[np.float64]


def sinusoids(times: Array, count: int, shift: float) -> Array:
    """Cosines, then sines (N, count) of times (N,), as diffusers' Timesteps with `downscale_freq_shift`."""
    angles = np.outer(times, frequencies(count, shift))
    return np.concatenate([np.cos(angles), np.sin(angles)], 1)


def frequencies(count: int, shift: float) -> Array:
    """From 1 down to about 1 / 10,000."""
    half = count // 2
    rates: Array = np.exp(-math.log(10_000) * np.arange(half) / (half - shift))
    return rates


def told_thousandfold(weight: Tensor, shift: float) -> Tensor:
    """The first layer (H, D) of a network that sees D sinusoids of t, for D of 1000 t with diffusers' `shift`.

    ModelError where there are too few of them.
    """
    count = weight.shape[1]
    middle = (np.arange(POINTS) + 0.5) / POINTS
    times = 0.5 - 0.5 * np.cos(np.pi * middle)
    slow = np.tile(SCALE * frequencies(count, shift) <= FASTEST, 2)
    left, sizes, right = np.linalg.svd(sinusoids(SCALE * times, count, shift)[:, slow], full_matrices=False)
    kept = sizes > SMALLEST * sizes[0]
    sums = np.zeros((count, count))
    sums[slow] = (right[kept].T / sizes[kept]) @ (left[:, kept].T @ sinusoids(times, count, 0.0))
    checked = np.linspace(0, 1, 2 * POINTS + 1)
    error = np.abs(sinusoids(SCALE * checked, count, shift) @ sums - sinusoids(checked, count, 0.0)).max()
    if not error <= LARGEST_ERROR:
        raise ModelError(f"the network sees {count} sinusoids of its time, too few to tell it 1000 t instead of t")
    return (weight.double() @ torch.from_numpy(sums.T)).to(weight.dtype)
