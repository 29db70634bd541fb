"""Dormand and Prince's method for a batch in which every image has time and step of its own.

torchdiffeq steps a batch as one system, so that each image's result depends on the others; one image at a time, a
network runs several times slower than in a batch. This is torchdiffeq's dopri5, decision by decision (first step by
Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", II.4; controller with safety 0.9, factors
0.2 to 10; the last stage is the next step's first), with those decisions kept for each image. Images that have arrived
leave the batch.

Shapes: y (B, ...) float64; times, steps, errors (B,) float64. Time falls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import EvaluationError

# velocity(y, t, rows): rows are the positions, in the batch given at the start, of the images still under way.
RowVelocity = Callable[[Tensor, Tensor, list[int]], Tensor]

ALPHA = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
BETA = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (
    35 / 384 - 1951 / 21600,
    0.0,
    500 / 1113 - 22642 / 50085,
    125 / 192 - 451 / 720,
    -2187 / 6784 + 12231 / 42400,
    11 / 84 - 649 / 6300,
    -1 / 60,
)
ORDER, SAFETY, LARGEST, SMALLEST = 5, 0.9, 10.0, 0.2
CALLS_TO_START, CALLS_A_STEP = 2, 6


def integrate_each(
    velocity: RowVelocity, y: Tensor, first: float, last: float, atol: float, rtol: float, max_steps: int
) -> tuple[Tensor, list[int]]:
    """y at `last` from y at `first` > `last`, and the velocity calls of each image.

    Raises EvaluationError where an image takes more than `max_steps` steps, where steps shrink to nothing, or where
    a state is not finite.
    """
    out, calls = torch.empty_like(y), [CALLS_TO_START] * len(y)
    rows = list(range(len(y)))
    t = torch.full((len(y),), float(first), dtype=torch.float64, device=y.device)
    f = velocity(y, t, rows)
    h = _first_step(velocity, y, t, f, rows, atol, rtol)
    for _ in range(max_steps):
        if not bool((t - h < t).all()) or not bool(torch.isfinite(y).all()):
            raise EvaluationError(
                f"dopri5 gave up at t = {float(t.min()):g}: steps shrink to nothing or values explode"
            )
        # The last step ends exactly where it should.
        ends = t - h <= last
        h = torch.where(ends, t - last, h)
        to = torch.where(ends, torch.full_like(t, last), t - h)
        k = [f]
        for alpha, beta in zip(ALPHA, BETA, strict=True):
            at = to if alpha == 1 else t - alpha * h
            y1 = y - _wide(h, y) * _sum(beta, k)
            k.append(velocity(y1, at, rows))
        tolerance = atol + rtol * torch.maximum(y.abs(), y1.abs())
        error = _rms(_wide(h, y) * _sum(ERROR, k) / tolerance)
        accepted = error <= 1
        for row in rows:
            calls[row] += CALLS_A_STEP
        keep = _wide(accepted, y)
        y, f, t = torch.where(keep, y1, y), torch.where(keep, k[-1], f), torch.where(accepted, to, t)
        h = h * _factor(error)
        going = t > last
        if not bool(going.all()):
            for i in (~going).nonzero().flatten().tolist():
                out[rows[i]] = y[i]
            rows = [row for row, goes in zip(rows, going.tolist(), strict=True) if goes]
            y, f, t, h = y[going], f[going], t[going], h[going]
        if not rows:
            return out, calls
    raise EvaluationError(
        f"dopri5 gave up between t = {first:g} and {last:g}: {len(rows)} images need more than {max_steps} steps"
    )


def _first_step(
    velocity: RowVelocity, y: Tensor, t: Tensor, f: Tensor, rows: list[int], atol: float, rtol: float
) -> Tensor:
    scale = atol + rtol * y.abs()
    d0, d1 = _rms(y / scale), _rms(f / scale)
    tiny = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = torch.where(tiny, torch.full_like(d0, 1e-6), 0.01 * d0 / d1)
    f1 = velocity(y - _wide(h0, y) * f, t - h0, rows)
    d2 = _rms((f1 - f) / scale) / h0
    flat = (d1 <= 1e-15) & (d2 <= 1e-15)
    h1 = torch.where(flat, torch.clamp(h0 * 1e-3, min=1e-6), (0.01 / torch.maximum(d1, d2)) ** (1 / ORDER))
    return torch.minimum(100 * h0, h1)


def _factor(error: Tensor) -> Tensor:
    """What the step is multiplied by; an accepted one never shrinks."""
    least = torch.where(error < 1, 1.0, SMALLEST).to(error.dtype)
    factor = torch.clamp(torch.maximum(SAFETY / error ** (1 / ORDER), least), max=LARGEST)
    return torch.where(error == 0, torch.full_like(error, LARGEST), factor)


def _sum(weights: tuple[float, ...], k: list[Tensor]) -> Tensor:
    out = torch.zeros_like(k[0])
    for weight, tensor in zip(weights, k, strict=True):
        if weight:
            out = out + weight * tensor
    return out


def _rms(values: Tensor) -> Tensor:
    """Root mean square over an image's entries, (B,)."""
    return values.square().flatten(1).mean(1).sqrt()


def _wide(values: Tensor, y: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (y.ndim - 1))
