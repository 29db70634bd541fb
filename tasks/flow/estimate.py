"""The terms of the bound for trained networks: what can be estimated, and on which side of the truth it lies.

- Reconstruction: a mean over images, unbiased, with a normal interval.
- Lipschitz constants: the largest singular value of the Jacobian at sampled points, by power iteration. Each is a
  lower bound of the constant, so the interval is open above: [value, inf). What comes of it is an estimate of the
  bound, not a certificate.
- Velocity error: the marginal velocity v is not known, but E|v_hat - u|^2 = E|v_hat - v|^2 + E|v - u|^2 for the
  target u = z1 - z0, because v = E[u | x_t] and the cross term vanishes. So the flow-matching loss, on data that the
  network was not trained on, is an upper bound of the error; what it exceeds it by (E|v - u|^2, of the order of the
  latents' size) does not shrink with training, and without v nothing says how large it is. The loss of any other
  field is at least that part as well, so the difference of the two losses from the same points is a lower bound of
  the error: useful where the other network is clearly better. For the law of the training images v has a closed form
  (`posteriors.py`), and the error an unbiased estimate.

Shapes: images (B, C, H, W), latents (B, c, h, w) as the flow sees them (scaled), squared norms summed over an image.
Noise and times are functions of (seed, index, count).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.flow.bound import W2Bound
from fewstep.tasks.flow.ode import Velocity, ends, model_velocity
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.sampling.noise import image_noise

# Streams of an image's noise; 0 is what samplers start from.
POSTERIOR, PATH, DIRECTION = 1, 2, 3
Fields = Callable[[Sequence[int]], Velocity]


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that it is in, from `count` images; an open end is infinite."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class TrainedTerms:
    """Squared reconstruction error, the two Lipschitz constants, the flow-matching loss over t, and, where another
    network was given, the lower bound of the velocity's error. `smoothing` as in `W2Bound`."""

    reconstruction: Estimate
    decoder: Estimate
    velocity: Estimate
    loss: Estimate
    excess: Estimate | None = None
    smoothing: float = 0.0

    def plug_in(self) -> W2Bound:
        """The bound with the terms' values in it, the loss in the place of the error. Not a certificate, see above."""
        r = math.sqrt(self.reconstruction.value)
        return W2Bound(r, self.decoder.value, self.velocity.value, self.loss.value, self.smoothing)


def autoencoder(vae: Any, seed: int) -> tuple[Callable[[Tensor, Sequence[int]], Tensor], Callable[[Tensor], Tensor]]:
    """Encoder (images, their indices) -> latents and decoder of an AutoencoderKL, in the flow's scale.

    The encoder draws from its posterior with noise of (seed, index), as training does.
    """
    scale, shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)

    def encode(images: Tensor, indices: Sequence[int]) -> Tensor:
        posterior = vae.encode(images, return_dict=False)[0]
        mean, std = cast(Tensor, posterior.mean), cast(Tensor, posterior.std)
        return (mean + std * noise_of(seed, indices, mean, POSTERIOR) - shift) * scale

    def decode(latents: Tensor) -> Tensor:
        images: Tensor = vae.decode(latents / scale + shift, return_dict=False)[0]
        return images

    return encode, decode


@torch.no_grad()
def reconstruction_error(
    encode: Callable[[Tensor, Sequence[int]], Tensor],
    decode: Callable[[Tensor], Tensor],
    images: Tensor,
    batch: int = 32,
) -> Estimate:
    """E|x - D(E(x))|^2 over the images, which have the indices 0 .. N - 1."""
    squares = []
    for part in batches(len(images), batch):
        x = images[part]
        squares.append((decode(encode(x, part)) - x).double().square().flatten(1).sum(1))
    return mean_over([torch.cat(squares)])


def denoiser_fields(denoiser: Denoiser, guidance: float = 1.0) -> Fields:
    """The velocities of a loaded model under its conditions, at the nearest time it knows where t is outside them.

    Without guidance (scale 1): a guided velocity leads elsewhere than to the law of the data.
    """
    noise, output = denoiser.files.noise, denoiser.files.prediction_type
    first, last = ends(noise, output)

    def fields(indices: Sequence[int]) -> Velocity:
        v = model_velocity(denoiser.on(indices, guidance), noise, output)
        return lambda y, t: v(y, min(max(t, last), first))

    return fields


@torch.no_grad()
def flow_matching_loss(
    fields: Fields, latents: Tensor, seed: int = 0, times: int = 32, batch: int = 32, other: Fields | None = None
) -> tuple[Estimate, Estimate | None]:
    """int_0^1 E|v_hat - u|^2 dt, an upper bound of the velocity's error, and with `other` its lower bound.

    Image i is looked at at the midpoint of the cell i mod `times`; the mean of the cells' means is the midpoint rule
    in t. The second is the difference to the other field's loss at the same points, at least 0.
    """
    losses: list[list[Tensor]] = [[] for _ in range(times)]
    differences: list[list[Tensor]] = [[] for _ in range(times)]
    for t, indices, x, target in path_points(latents, seed, times, batch):
        cell = min(int(t * times), times - 1)
        ours = (fields(indices)(x, t) - target).double().square().flatten(1).sum(1)
        losses[cell].append(ours)
        if other is not None:
            theirs = (other(indices)(x, t) - target).double().square().flatten(1).sum(1)
            differences[cell].append(ours - theirs)
    loss = mean_over([torch.cat(cell) for cell in losses])
    if other is None:
        return loss, None
    excess = mean_over([torch.cat(cell) for cell in differences])
    return loss, Estimate(max(0.0, excess.value), max(0.0, excess.low), loss.high, excess.count)


@torch.no_grad()
def velocity_errors(
    fields: Fields, exact: Fields, latents: Tensor, seed: int = 0, times: int = 32, batch: int = 32
) -> list[Tensor]:
    """|v_hat - v|^2 of images at the midpoint of each of the `times` cells, where v is known; see `mean_over`.

    `exact` is v of the law that the latents are drawn from.
    """
    squares: list[list[Tensor]] = [[] for _ in range(times)]
    for t, indices, x, _ in path_points(latents, seed, times, batch):
        difference = fields(indices)(x, t) - exact(indices)(x, t)
        squares[min(int(t * times), times - 1)].append(difference.double().square().flatten(1).sum(1))
    return [torch.cat(cell) for cell in squares]


def path_points(
    latents: Tensor, seed: int, times: int, batch: int
) -> Iterator[tuple[float, list[int], Tensor, Tensor]]:
    """t, image indices, points x_t and targets z1 - z0, one time a batch."""
    if times < 1 or len(latents) < 2 * times:
        raise ConfigurationError(f"{len(latents)} latents at {times} times: give at least two for each time")
    for cell in range(times):
        t = (cell + 0.5) / times
        for part in batches(len(range(cell, len(latents), times)), batch):
            indices = [cell + times * k for k in part]
            z0 = latents[indices]
            z1 = noise_of(seed, indices, z0, PATH)
            yield t, indices, (1 - t) * z0 + t * z1, z1 - z0


def noise_of(seed: int, indices: Sequence[int], like: Tensor, stream: int) -> Tensor:
    """Standard normal noise shaped as `like`, a function of (seed, index, stream)."""
    each = [torch.from_numpy(image_noise(seed, i, tuple(like.shape[1:]), stream)) for i in indices]
    return torch.stack(each).to(like)


def batches(count: int, batch: int) -> list[list[int]]:
    """0 .. count - 1 in pieces of `batch`."""
    return [list(range(i, min(i + batch, count))) for i in range(0, count, batch)]


def mean_over(cells: Sequence[Tensor], confidence: float = 0.95) -> Estimate:
    """The mean of the cells' means and its normal interval from the scatter within cells."""
    if min(len(c) for c in cells) < 2:
        raise ConfigurationError("an interval needs at least two images")
    value = sum(float(c.mean()) for c in cells) / len(cells)
    variance = sum(float(c.var()) / len(c) for c in cells) / len(cells) ** 2
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(variance)
    return Estimate(value, max(0.0, value - half), value + half, sum(len(c) for c in cells))
