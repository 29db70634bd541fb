"""The bound's terms for networks: against closed forms, dense Jacobians, and in any batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.data import load_dataset
from fewstep.tasks.flow.estimate import (
    TrainedTerms,
    autoencoder,
    denoiser_fields,
    flow_matching_loss,
    reconstruction_error,
)
from fewstep.tasks.flow.linear_case import LinearCase, LinearDecoder
from fewstep.tasks.flow.lipschitz import decoder_lipschitz, singular_values, velocity_profile
from fewstep.tasks.flow.mixture import LatentMixture, Wave
from fewstep.tasks.flow.ode import Velocity
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model

TWO = LatentMixture([0.4, 0.6], [[-0.9], [0.8]], [0.4])
WAVE = Wave([0.5], [2.0], 0.3)
CASE = LinearCase(TWO, LinearDecoder(np.eye(1), np.zeros(1)), WAVE)


def exact(x: Tensor, t: float) -> Tensor:
    """v of TWO for x (B, 1, 1, 1), in torch, for derivatives."""
    m, w = (torch.tensor(a, dtype=x.dtype) for a in (TWO.means[:, 0], TWO.weights))
    V, c = float(TWO.variance(t)[0]), float(TWO.slope(t)[0])
    r = x - (1 - t) * m
    shares = torch.softmax(w.log() - 0.5 * r**2 / V, -1)
    return (shares * (c * r - m)).sum(-1, keepdim=True)


def true_field(indices: Sequence[int]) -> Velocity:
    return exact


def learned_field(indices: Sequence[int]) -> Velocity:
    return lambda x, t: exact(x, t) + 0.5 * torch.sin(2.0 * x + 0.3)


def latents_of(count: int) -> Tensor:
    rng = np.random.default_rng(5)
    k = rng.choice(2, count, p=TWO.weights)
    z = TWO.means[k, 0] + TWO.stds[0] * rng.standard_normal(count)
    return torch.tensor(z, dtype=torch.float64).reshape(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def vae(tiny_stable_diffusion: Path) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(str(tiny_stable_diffusion / "vae")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_loss_bounds_the_velocity_error() -> None:
    """With the true field to compare with, the lower bound is the error itself."""
    error = CASE.bound().error
    loss, excess = flow_matching_loss(learned_field, latents_of(40_000), times=50, batch=2000, other=true_field)
    floor, none = flow_matching_loss(true_field, latents_of(40_000), times=50, batch=2000)
    assert none is None
    assert excess is not None
    assert excess.low <= error <= loss.low
    assert excess.value == pytest.approx(error, abs=2 * (excess.value - excess.low))
    assert loss.value == pytest.approx(floor.value + excess.value)
    assert floor.value > 5 * error  # what the loss exceeds the error by does not vanish
    assert loss.count == excess.count == 40_000


def test_intervals_shrink_and_batches_do_not_matter() -> None:
    latents = latents_of(2000)
    whole, _ = flow_matching_loss(learned_field, latents, times=20, batch=1000)
    parts, _ = flow_matching_loss(learned_field, latents, times=20, batch=7)
    few, _ = flow_matching_loss(learned_field, latents[:500], times=20)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.high == pytest.approx(whole.high, rel=1e-12)
    assert (few.high - few.low) / (whole.high - whole.low) == pytest.approx(2, rel=0.3)


def test_the_velocitys_constant_is_a_lower_estimate() -> None:
    """And can be a bad one: the field is steepest between the modes, where hardly any of the data's path lies."""
    bound = CASE.bound()
    found = velocity_profile(learned_field, latents_of(200), times=20, iterations=2).constant
    assert 0.4 * bound.velocity < found.value == found.low <= bound.velocity
    assert found.high == math.inf


def test_power_iteration_finds_a_matrixs_norm() -> None:
    g = torch.Generator().manual_seed(2)
    A = torch.randn(30, 12, dtype=torch.float64, generator=g)
    x = torch.randn(3, 12, dtype=torch.float64, generator=g)
    largest = float(torch.linalg.matrix_norm(A, 2))
    found = [singular_values(lambda v: v @ A.T, x, [0, 1, 2], 0, n) for n in (1, 5, 200)]
    assert torch.all(found[0] <= found[1])
    assert torch.all(found[1] <= found[2] + 1e-12)
    torch.testing.assert_close(found[2], torch.full((3,), largest, dtype=torch.float64))
    alone = singular_values(lambda v: v @ A.T, x[1:2], [1], 0, 5)
    torch.testing.assert_close(alone, found[1][1:2])
    assert float(singular_values(torch.zeros_like, x, [0, 1, 2], 0).max()) == 0


def test_a_networks_constant_is_that_of_its_jacobian() -> None:
    """A bundled UNet with attention, as a flow's velocity, against the dense Jacobian."""
    denoiser = Denoiser(find_model("digits-ddpm"))
    v = denoiser_fields(denoiser)([0])
    x = 0.5 * torch.randn(1, *denoiser.files.shape, generator=torch.Generator().manual_seed(3))

    def f(y: Tensor) -> Tensor:
        return v(y, 0.4)

    found = float(singular_values(f, x, [0], 0, 30)[0])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        jacobian = torch.autograd.functional.jacobian(f, x).reshape(x.numel(), x.numel())
    largest = float(torch.linalg.matrix_norm(jacobian.double(), 2))
    assert 0.97 * largest < found <= largest * (1 + 1e-4)


@pytest.mark.parametrize("model", ["digits-ddpm", "digits-edm"])
def test_a_bundled_models_loss_is_far_less_than_that_of_no_model(model: str) -> None:
    """Any family, on the whole of [0, 1]; the zero field's loss is E|z1 - z0|^2."""
    denoiser = Denoiser(find_model(model))
    images = torch.from_numpy(np.asarray(load_dataset("digits", "test").images[:64], np.float32))
    loss, _ = flow_matching_loss(denoiser_fields(denoiser), images, times=8)
    nothing, _ = flow_matching_loss(lambda _: lambda x, t: torch.zeros_like(x), images, times=8)
    assert denoiser.calls == 64
    assert 0 < loss.high < 0.5 * nothing.low


def test_an_autoencoders_terms(vae: Any, images: Tensor) -> None:
    encode, decode = autoencoder(vae, seed=4)
    whole = reconstruction_error(encode, decode, images)
    parts = reconstruction_error(encode, decode, images, batch=2)
    assert parts.value == pytest.approx(whole.value, rel=1e-5)
    assert 0 < whole.low < whole.value < whole.high
    with torch.no_grad():
        latents = encode(images, range(5))
        assert not torch.equal(latents, autoencoder(vae, seed=5)[0](images, range(5)))
        mean = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        assert 0 < float((latents - mean).abs().max()) < 6 * vae.config.scaling_factor * 3
    found = decoder_lipschitz(decode, latents, iterations=12)
    assert found.count == 5
    # In the flow's scale: the decoder divides by the scaling factor first.
    raw = decoder_lipschitz(lambda z: vae.decode(z).sample, latents / vae.config.scaling_factor, iterations=12)
    assert found.value == pytest.approx(raw.value / vae.config.scaling_factor, rel=1e-3)
    # No direction stretches more than the largest singular value at the point.
    u = torch.randn(latents.shape, generator=torch.Generator().manual_seed(6))
    u = 1e-2 * u / u.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        stretch = (decode(latents + u) - decode(latents - u)).flatten(1).norm(dim=1) / 2e-2
    assert float(stretch.max()) < found.value * 1.01


def test_the_terms_of_a_known_case() -> None:
    """The loss is more than the error, the velocity's constant less than it is: an estimate, not a certificate."""
    latents = latents_of(20_000)
    decode: Callable[[Tensor], Tensor] = lambda z: 2.0 * z + 0.1  # noqa: E731
    squared = reconstruction_error(lambda x, _: 0.5 * x, decode, 2.0 * latents, batch=5000)
    loss, excess = flow_matching_loss(learned_field, latents, batch=1000, other=true_field)
    terms = TrainedTerms(
        squared,
        decoder_lipschitz(decode, latents[:8], iterations=2),
        velocity_profile(learned_field, latents[:40], times=10, iterations=2).constant,
        loss,
        excess,
    )
    case = LinearCase(TWO, LinearDecoder(np.array([[2.0]]), np.array([0.1])), WAVE)
    bound, estimated = case.bound(), terms.plug_in()
    assert estimated.reconstruction == pytest.approx(bound.reconstruction)
    assert estimated.decoder == pytest.approx(2.0)
    assert estimated.error > bound.error
    assert estimated.velocity < bound.velocity
    assert case.true_w2() < min(bound.value, estimated.value)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least two"):
        flow_matching_loss(true_field, latents_of(30), times=16)
    with pytest.raises(ConfigurationError, match="two images"):
        reconstruction_error(lambda x, _: x, lambda z: z, torch.zeros(1, 1, 2, 2))
    with pytest.raises(ConfigurationError, match="iterations = 0"):
        singular_values(lambda v: v, torch.zeros(1, 2), [0], 0, 0)
