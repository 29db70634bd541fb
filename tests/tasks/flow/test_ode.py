"""ODE sampling: parity with compiled schedules and diffusers, convergence to the exact map, calls, batching."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.schedule.presets import preset
from fewstep.tasks.flow.ode import OdeSampler, OdeSettings, fixed_times, integrate, lambda_of, model_velocity
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_families import EDM, FlowMatching, VarianceExploding
from fewstep.tasks.models.noise_schedule import ContinuousVP, NoiseSchedule
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample
from fewstep.tasks.sampling.grids import grid
from fewstep.tasks.sampling.noise import starting_noise

FLOW = FlowMatching()
V = "flow_prediction"
FAMILIES: list[tuple[NoiseSchedule, str]] = [
    (FLOW, V),
    (FlowMatching(scale=1000.0, shift=3.0), V),
    (FLOW, "sample"),
    (FLOW, "epsilon"),
    (ContinuousVP(), "epsilon"),
    (ContinuousVP(), "v_prediction"),
    (EDM(0.002, 80.0, 0.5), "epsilon"),
    (VarianceExploding(0.01, 50.0), "score"),
]


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype == torch.float64
    return float((ours - theirs).norm() / theirs.norm())


def compiled(name: str, times: tuple[float, ...], mixture: Any, x: Tensor) -> Tensor:
    """Samples of the preset on the flow's times."""
    tables = compile_schedule(preset(name, [lambda_of(t) for t in times]), FLOW, V)
    return sample(tables, mixture.denoiser(FLOW, V), x * tables.prior_scale)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_euler_is_our_euler(steps: int, shift: float, two_bumps: Any, x64: Tensor) -> None:
    times = fixed_times(FlowMatching(shift=shift), V, steps)
    assert (times[0], times[-1], len(times)) == (1.0, 0.0, steps + 1)
    theirs = OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings("euler", times=times))(x64)
    assert relative(compiled("euler", times, two_bumps, x64), theirs.x) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 40])
def test_heun_is_our_heun_flow(steps: int, two_bumps: Any, x64: Tensor) -> None:
    times = tuple(torch.linspace(0.999, 0.01, steps + 1, dtype=torch.float64).tolist())
    theirs = OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings("heun", times=times))(x64)
    assert relative(compiled("heun-flow", times, two_bumps, x64), theirs.x) < 1e-11


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 40])
@pytest.mark.parametrize("family", [FLOW, ContinuousVP()])
def test_presets_are_torchdiffeqs_methods_in_sigma(
    name: str, steps: int, family: NoiseSchedule, two_bumps: Any, x64: Tensor
) -> None:
    """Our Euler and Heun are the methods applied to d(x / alpha) = eps d(sigma / alpha)."""
    from torchdiffeq import odeint

    output = V if family is FLOW else "epsilon"
    lambdas = grid("uniform-lambda", family, steps)
    tables = compile_schedule(preset(name, lambdas), family, output)
    ours = sample(tables, two_bumps.denoiser(family, output), x64 * tables.prior_scale)

    def eps(s: Tensor, y: Tensor) -> Tensor:
        alpha, sigma = family.alpha_sigma(-math.log(float(s)))
        return (alpha * y - alpha * two_bumps.x0(alpha * y, alpha, sigma)) / sigma

    ratios = torch.tensor([math.exp(-v) for v in lambdas], dtype=torch.float64)
    start = x64 * family.prior_scale(lambdas[0]) / family.alpha_sigma(lambdas[0])[0]
    end = odeint(eps, start, ratios, method={"euler": "euler", "heun": "heun2"}[name])[-1]
    assert relative(ours, end * family.alpha_sigma(lambdas[-1])[0]) < 1e-9


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_diffusers_flow_scheduler(steps: int, shift: float, two_bumps: Any, x64: Tensor) -> None:
    """On the scheduler's own sigmas; it rounds the sample to float32 at each step."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    times = tuple(scheduler.sigmas.tolist())
    assert (times[0], times[-1]) == (1, 0)
    denoiser = two_bumps.denoiser(FLOW, V)
    x = x64
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(denoiser(x, times[i]), timestep, x).prev_sample
    ode = OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings("euler", times=times))(x64)
    assert relative(ode.x, x) < 1e-6
    assert relative(compiled("euler", times, two_bumps, x64), x) < 1e-6


def test_equal_steps_with_shift_are_diffusers_sigmas() -> None:
    """Its grid ends at the last of 1000 times instead of at 0, one step later; ours divides [0, 1] evenly."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - i / 7 for i in range(7)])
    ours = fixed_times(FlowMatching(shift=3.0), V, 7)
    torch.testing.assert_close(torch.tensor(ours), scheduler.sigmas, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("noise", "output"), FAMILIES)
def test_dopri5_reaches_the_exact_map(
    noise: NoiseSchedule, output: str, one_bump: tuple[Any, Callable[[Tensor], Tensor]], x64: Tensor
) -> None:
    """A Gaussian's map from noise to sample is affine; families that start late or end early miss it by their ends."""
    mixture, exact = one_bump
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-9):
        settings = OdeSettings(atol=tolerance, rtol=tolerance)
        errors.append(relative(OdeSampler(mixture.on(noise, output), noise, output, settings)(x64).x, exact(x64)))
    from_the_ends = 1e-8 if output == V else 0.025
    assert errors[-1] < from_the_ends
    if output == V:
        assert errors[0] > 10 * errors[2]
        assert errors[1] < 1e-4


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_fixed_methods_have_their_order(method: str, order: int, two_bumps: Any, x64: Tensor) -> None:
    on = two_bumps.on(FLOW, V)
    exact = OdeSampler(on, FLOW, V, OdeSettings(atol=1e-11, rtol=1e-11))(x64).x
    errors = [relative(OdeSampler(on, FLOW, V, OdeSettings(method, steps))(x64).x, exact) for steps in (64, 128, 256)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(slope - order) < 0.15 for slope in slopes), slopes


@pytest.mark.parametrize(("noise", "output"), FAMILIES)
def test_all_families_follow_the_same_path(noise: NoiseSchedule, output: str, two_bumps: Any, x64: Tensor) -> None:
    """From the same flow state at the same t, dopri5 reaches the same state, whatever the network predicts."""
    settings = OdeSettings(atol=1e-10, rtol=1e-10)
    results = []
    for family, prediction in ((FLOW, V), (noise, output)):
        velocity = model_velocity(two_bumps.denoiser(family, prediction), family, prediction)
        results.append(integrate(velocity, x64, (0.9, 0.05), settings)[0])
    assert relative(results[1], results[0]) < 1e-8


@pytest.mark.parametrize(("noise", "output"), FAMILIES)
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "dopri5"])
def test_calls_are_counted(noise: NoiseSchedule, output: str, method: str, two_bumps: Any, x64: Tensor) -> None:
    settings = OdeSettings(method, steps=0 if method == "dopri5" else 5)
    sampler = OdeSampler(two_bumps.on(noise, output), noise, output, settings)
    done = sampler(x64)
    assert sum(size for size, _ in two_bumps.calls) == sum(done.nfe)
    assert len(done.nfe) == len(x64)
    if method == "dopri5":
        assert sampler.nfe is None
        assert len(set(done.nfe)) > 1
    else:
        last = 0 if output == V else 1
        each = 1 if method == "euler" else 2
        assert set(done.nfe) == {sampler.nfe} == {each * (5 - last) + last}


def test_the_adaptive_solver_stays_within_the_ends(two_bumps: Any, x64: Tensor) -> None:
    """torchdiffeq left alone steps past t = 0 and interpolates back."""
    OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings())(x64)
    times = [time for _, time in two_bumps.calls]
    assert min(times) >= 0
    assert max(times) == 1


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 5, 5), (3, 7, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_methods_give_equal_bits_in_any_batch(method: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def on(indices: Any) -> Callable[[Tensor, float], Tensor]:
        gain = torch.tensor([1 + i / 7 for i in indices], dtype=dtype).reshape(-1, 1, 1, 1)
        return lambda x, time: gain * torch.tanh(x) * math.cos(time)

    x = torch.randn(7, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    sampler = OdeSampler(on, FLOW, V, OdeSettings(method, 4))
    whole = sampler(x)
    assert whole.x.dtype == dtype
    for sizes in ([1] * 7, [2, 5], [4, 3]):
        cuts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        parts = [sampler(x[a:b], range(a, b)) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)


def test_dopri5_controls_each_image_or_the_batch(two_bumps: Any, x64: Tensor) -> None:
    sharp = torch.cat([x64, 3 * x64])
    exact = OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings(atol=1e-11, rtol=1e-11))(sharp).x
    loose = {"atol": 1e-4, "rtol": 1e-4}
    alone = OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings(**loose))
    whole = alone(sharp)
    apart = [alone(sharp[i : i + 1], [i]) for i in range(len(sharp))]
    assert torch.equal(torch.cat([part.x for part in apart]), whole.x)
    assert whole.nfe == tuple(part.nfe[0] for part in apart)
    together = OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings(**loose, control="batch"))(sharp)
    assert len(set(together.nfe)) == 1
    # The norm is the worst image's, not the mean over the batch: common steps are about as short as its own.
    assert together.nfe[0] >= max(whole.nfe) - 12
    worst = float((together.x - exact).flatten(1).norm(dim=1).max())
    assert worst < 10 * float((whole.x - exact).flatten(1).norm(dim=1).max())


@pytest.mark.parametrize("model", ["digits-ddpm", "digits-edm"])
def test_a_bundled_model_is_sampled(model: str) -> None:
    """A few midpoint steps come near dopri5, from the noise of (seed, index); the denoiser counts the same calls."""
    denoiser = Denoiser(find_model(model))
    noise = starting_noise(3, 5, 2, denoiser.files.shape)
    teacher = OdeSampler.of(denoiser, OdeSettings(atol=1e-3, rtol=1e-3, control="batch"))(noise, [5, 6])
    assert denoiser.calls == sum(teacher.nfe)
    far, near = (
        float((OdeSampler.of(denoiser, OdeSettings("midpoint", n))(noise, [5, 6]).x - teacher.x).norm())
        for n in (4, 24)
    )
    assert near < 0.5 * far
    assert teacher.x.dtype == torch.float32
    assert float(teacher.x.abs().max()) < 3


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"method": "rk45"}, "dopri5, euler, midpoint, heun"),
        ({"method": "euler"}, "at least one step"),
        ({"method": "heun", "steps": -3}, "steps = -3"),
        ({"steps": 5}, "chooses its own steps"),
        ({"atol": 0.0}, "positive"),
        ({"method": "euler", "times": (0.2, 0.4)}, "fall"),
        ({"method": "euler", "times": (1.0, 0.5, 0.0), "steps": 5}, "leave one"),
        ({"control": "pixel"}, "image or batch"),
    ],
)
def test_wrong_settings_are_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        OdeSettings(**asked)


def test_what_cannot_be_sampled_is_refused(two_bumps: Any, x64: Tensor) -> None:
    vp = ContinuousVP()
    with pytest.raises(ConfigurationError, match="too far after"):
        OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings("euler", times=(0.5, 0.0)))
    with pytest.raises(ConfigurationError, match="noisier"):
        OdeSampler(two_bumps.on(vp, "epsilon"), vp, "epsilon", OdeSettings("euler", times=(1.0, 0.0)))
    with pytest.raises(ConfigurationError, match="6 noises for 2"):
        OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings("euler", 2))(x64, [0, 1])
    with pytest.raises(EvaluationError, match="gave up"):
        OdeSampler(two_bumps.on(FLOW, V), FLOW, V, OdeSettings(max_steps=2))(x64)
    with pytest.raises(EvaluationError, match="not finite"):
        OdeSampler(lambda _: lambda x, t: x * math.nan, FLOW, V, OdeSettings("euler", 2))(x64)
