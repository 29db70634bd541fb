"""Lower estimates of Lipschitz constants of trained networks: the largest singular values of Jacobians at points.

Every value is one that the constant cannot be less than, so the intervals are open above. A field is often steepest
where hardly any data lie (between the modes of its data), and sampled points miss that: expect too little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.flow.estimate import DIRECTION, Estimate, Fields, batches, noise_of, path_points
from fewstep.tasks.flow.ode import Velocity


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


def growth_rates(
    f: Callable[[Tensor], Tensor], x: Tensor, indices: Sequence[int], seed: int, iterations: int = 20
) -> Tensor:
    """Lower bounds (B,) of the largest eigenvalue of -(J + J^T) / 2, the rate at which paths part backwards in t.

    Ritz values on the Krylov space of `iterations` vectors, which never exceed it; negative where paths only meet.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if iterations < 1:
        raise ConfigurationError(f"iterations = {iterations}: the Krylov space needs at least one vector")
    derivatives: Any = torch.func
    with sdpa_kernel(SDPBackend.MATH):
        _, pull = derivatives.vjp(f, x)
        u = _unit(noise_of(seed, indices, x, DIRECTION))
        basis, images, alive = [], [], []
        for _ in range(min(iterations, x[0].numel())):
            _, stretched = derivatives.jvp(f, (x,), (u,))
            w = (-0.5 * (stretched + pull(u)[0])).detach()
            basis.append(u.flatten(1).double())
            images.append(w.flatten(1).double())
            alive.append(basis[-1].norm(dim=1) > 0)
            Q, rest = torch.stack(basis, 1), images[-1]
            for _ in range(2):
                rest = rest - torch.einsum("bk,bkd->bd", torch.einsum("bkd,bd->bk", Q, rest), Q)
            # What rounding leaves of an exhausted space is no direction.
            there = rest.norm(dim=1, keepdim=True) > 1e-5 * images[-1].norm(dim=1, keepdim=True)
            u = _unit(torch.where(there, rest, 0.0).reshape(x.shape)).to(x.dtype)
    T = torch.einsum("bkd,bld->bkl", torch.stack(basis, 1), torch.stack(images, 1))
    # A direction that is missing must not add an eigenvalue of its own: it gets the first vector's quotient.
    missing = torch.diag_embed((~torch.stack(alive, 1)) * T[:, :1, 0])
    largest: Tensor = torch.linalg.eigvalsh(0.5 * (T + T.transpose(1, 2)) + missing)[:, -1]
    return largest


@dataclass(frozen=True)
class Profile:
    """The largest found on each equal cell of [0, 1]: singular values and growth rates, from `count` points."""

    stretch: tuple[float, ...]
    growth: tuple[float, ...]
    count: int

    @property
    def constant(self) -> Estimate:
        """L is at least that."""
        largest = max(self.stretch)
        return Estimate(largest, largest, math.inf, self.count)


def decoder_lipschitz(
    decode: Callable[[Tensor], Tensor], latents: Tensor, seed: int = 0, iterations: int = 20, batch: int = 8
) -> Estimate:
    """The largest singular value over the latents, which have the indices 0 .. N - 1: L_D is at least that."""
    parts = batches(len(latents), batch)
    return _at_least([singular_values(decode, latents[p], p, seed, iterations) for p in parts])


def velocity_profile(
    fields: Fields, latents: Tensor, seed: int = 0, times: int = 32, iterations: int = 20, batch: int = 8
) -> Profile:
    """What the learned velocity does at points of the data's path, cell by cell."""
    stretch: list[list[Tensor]] = [[] for _ in range(times)]
    growth: list[list[Tensor]] = [[] for _ in range(times)]
    for t, indices, x, _ in path_points(latents, seed, times, batch):
        v, cell = fields(indices), min(int(t * times), times - 1)

        def f(y: Tensor, v: Velocity = v, t: float = t) -> Tensor:
            return v(y, t)

        stretch[cell].append(singular_values(f, x, indices, seed, iterations))
        growth[cell].append(growth_rates(f, x, indices, seed, iterations))
    largest = [tuple(float(torch.cat(cell).max()) for cell in cells) for cells in (stretch, growth)]
    return Profile(largest[0], largest[1], len(latents))


def _unit(u: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(u.flatten(1), dim=1).clamp_min(torch.finfo(u.dtype).tiny)
    return u / norm.reshape(-1, *(1,) * (u.ndim - 1))


def _at_least(found: Sequence[Tensor]) -> Estimate:
    values = torch.cat(list(found))
    largest = float(values.max())
    return Estimate(largest, largest, math.inf, len(values))
