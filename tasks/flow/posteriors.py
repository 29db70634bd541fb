"""The flow's velocity in closed form where the latents are those of a finite data set, each image with its posterior.

Notation: q = 1/N sum_k N(m_k, diag s_k^2), the law that a network is trained on when image k is drawn evenly and its
latent from the encoder's posterior; a = 1 - t; V_k = a^2 s_k^2 + t^2; c_k = (t - a s_k^2) / V_k; pi_k(x) the
posterior of image k at x_t = x. As for mixtures with one S (`mixture.py`), v = sum_k pi_k (c_k (x - a m_k) - m_k).
With s = 0 (a model of pixels) it is (x - sum_k pi_k m_k) / t, for t > 0.

A network that generalises is no copy of this v: near t = 0 this v knows which image it is, and the network does not.

Shapes: means and stds (N, ...), x and velocities (B, ...); sums are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.flow.ode import Velocity

CHUNK = 4000
Fields = Callable[[Sequence[int]], Velocity]


class Posteriors:
    """An even mixture of N Gaussians, each with its own mean and standard deviations."""

    def __init__(self, means: Tensor, stds: Tensor) -> None:
        if means.shape != stds.shape or len(means) == 0:
            raise ConfigurationError(f"means {tuple(means.shape)} and stds {tuple(stds.shape)}: need equal shapes")
        self.means, self.variances = means.double().flatten(1), stds.double().flatten(1).square()

    @torch.no_grad()
    def velocity(self, x: Tensor, t: float) -> Tensor:
        """v(x, t) in x's type."""
        y = x.double().flatten(1)
        a, squares = 1 - t, y.square()
        top = torch.full((len(y), 1), -torch.inf, dtype=torch.float64, device=y.device)
        total, found = torch.zeros_like(top), torch.zeros_like(y)
        for m, s2 in zip(torch.split(self.means, CHUNK), torch.split(self.variances, CHUNK), strict=True):
            V = a * a * s2 + t * t
            scaled = m / V
            distance = squares @ (1 / V).T - 2 * a * (y @ scaled.T) + a * a * (m * scaled).sum(1)
            logits = -0.5 * (distance + V.log().sum(1))
            highest = torch.maximum(top, logits.max(1, keepdim=True).values)
            before, shares = (top - highest).exp(), (logits - highest).exp()
            c = (t - a * s2) / V
            total = before * total + shares.sum(1, keepdim=True)
            found = before * found + y * (shares @ c) - shares @ (a * c * m + m)
            top = highest
        return (found / total).reshape(x.shape).to(x.dtype)


def exact_fields(laws: Mapping[int | None, Posteriors], label: Callable[[int], int | None]) -> Fields:
    """The velocity of each image's law, that of its label."""

    def fields(indices: Sequence[int]) -> Velocity:
        places: dict[int | None, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(label(index), []).append(place)

        def v(x: Tensor, t: float) -> Tensor:
            out = torch.empty_like(x)
            for name, where in places.items():
                out[where] = laws[name].velocity(x[where], t)
            return out

        return v

    return fields
