"""Our Euler and Heun on a network against torchdiffeq and diffusers as one would call them oneself, to 1e-6."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UNet2DModel
from torch import Tensor
from torchdiffeq import odeint

from fewstep.search_spaces.schedule.presets import preset
from fewstep.tasks.flow.ode import OdeSampler, OdeSettings, lambda_of
from fewstep.tasks.models.from_diffusers import from_diffusers
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample

V = "flow_prediction"
LABELS = torch.tensor([0, 2, 4])


@pytest.fixture(scope="module")
def network() -> Callable[[Tensor, float], Tensor]:
    """An untrained flow on 4x7x7 latents with labels, the shape of the bundled ones, called at diffusers' times."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=7,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16,),
            down_block_types=("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",),
            norm_num_groups=4,
            attention_head_dim=8,
            num_class_embeds=5,
        )
    unet = unet.double().eval().requires_grad_(False)
    return lambda x, time: unet(x, torch.tensor(time, dtype=torch.float64), LABELS).sample


@pytest.fixture(scope="module")
def z1() -> Tensor:
    return torch.randn(3, 4, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def ours(name: str, times: tuple[float, ...], noise: NoiseSchedule, network: Any, x: Tensor) -> Tensor:
    tables = compile_schedule(preset(name, [lambda_of(t) for t in times]), noise, V)
    return sample(tables, network, x * tables.prior_scale)


@pytest.mark.parametrize(
    ("name", "method"),
    [("euler", "euler"), ("heun-flow", "heun2"), (None, "midpoint")],
    ids=["euler", "heun", "midpoint"],
)
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_torchdiffeq(name: str | None, method: str, steps: int, network: Any, z1: Tensor) -> None:
    """On uneven times that end before 0, where our Heun takes Euler's step, as diffusers' does; torchdiffeq's not."""
    noise = FlowMatching(scale=1000.0)
    times = (1.0, *(0.93 * (1 - (i / (steps + 1)) ** 0.7) for i in range(1, steps + 1)))
    grid = torch.tensor(times, dtype=torch.float64)
    theirs = odeint(lambda t, y: network(y, 1000.0 * float(t)), z1, grid, method=method)[-1]
    assert relative(z1, theirs) > 1e-2  # the network moves it
    settings = OdeSettings(method.removesuffix("2"), times=times)
    assert relative(OdeSampler(lambda _: network, noise, V, settings)(z1).x, theirs) < 1e-9
    if name is not None:  # there is no midpoint among the presets
        assert relative(ours(name, times, noise, network, z1), theirs) < 1e-9


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("euler", FlowMatchEulerDiscreteScheduler), ("heun-flow", FlowMatchHeunDiscreteScheduler)],
)
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_diffusers_schedulers(name: str, scheduler: Any, steps: int, shift: float, network: Any, z1: Tensor) -> None:
    """Its loop as in its pipelines, on its own sigmas, kept in float32; the noise schedule is read from it."""
    stock = scheduler(shift=shift)
    stock.set_timesteps(steps)
    x = z1
    for timestep in stock.timesteps:
        x = stock.step(network(x, float(timestep)), timestep, x).prev_sample
    times = tuple(k for k, _ in itertools.groupby(stock.sigmas.double().tolist()))  # Heun's stand there twice
    assert len(times) == steps + 1
    noise = from_diffusers(scheduler(shift=shift))
    assert relative(ours(name, times, noise, network, z1), x.double()) < 1e-6
