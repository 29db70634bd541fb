"""Lower estimates of Lipschitz constants of trained networks: the largest singular values of Jacobians at points.

Every value is one that the constant cannot be less than, so the intervals are open above. A field is often steepest
where hardly any data lie (between the modes of its data), and sampled points miss that: expect too little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.flow.estimate import DIRECTION, Estimate, Fields, batches, noise_of, path_points


def singular_values(
    f: Callable[[Tensor], Tensor], x: Tensor, indices: Sequence[int], seed: int, iterations: int = 20
) -> Tensor:
    """Lower bounds (B,) of the largest singular value of f's Jacobian at each x, by power iteration on J^T J.

    f treats the entries of a batch apart. With |u| = 1, |J u| never exceeds it and grows at each iteration.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if iterations < 1:
        raise ConfigurationError(f"iterations = {iterations}: power iteration needs at least one")
    derivatives: Any = torch.func
    # Only this kernel of attention has derivatives forwards.
    with sdpa_kernel(SDPBackend.MATH):
        _, pull = derivatives.vjp(f, x)
        u = _unit(noise_of(seed, indices, x, DIRECTION))
        for _ in range(iterations):
            _, stretched = derivatives.jvp(f, (x,), (u,))
            u = _unit(pull(stretched)[0])
        _, stretched = derivatives.jvp(f, (x,), (u,))
    return cast(Tensor, stretched.detach().double().flatten(1).norm(dim=1))


def decoder_lipschitz(
    decode: Callable[[Tensor], Tensor], latents: Tensor, seed: int = 0, iterations: int = 20, batch: int = 8
) -> Estimate:
    """The largest singular value over the latents, which have the indices 0 .. N - 1: L_D is at least that."""
    parts = batches(len(latents), batch)
    return _at_least([singular_values(decode, latents[p], p, seed, iterations) for p in parts])


def velocity_lipschitz(
    fields: Fields, latents: Tensor, seed: int = 0, times: int = 32, iterations: int = 20, batch: int = 8
) -> Estimate:
    """The same for the learned velocity at points of the data's path: L is at least that."""
    found = []
    for t, indices, x, _ in path_points(latents, seed, times, batch):
        v = fields(indices)
        found.append(singular_values(lambda y, v=v, t=t: v(y, t), x, indices, seed, iterations))  # type: ignore[misc]
    return _at_least(found)


def _unit(u: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(u.flatten(1), dim=1).clamp_min(torch.finfo(u.dtype).tiny)
    return u / norm.reshape(-1, *(1,) * (u.ndim - 1))


def _at_least(found: Sequence[Tensor]) -> Estimate:
    values = torch.cat(list(found))
    largest = float(values.max())
    return Estimate(largest, largest, math.inf, len(values))
