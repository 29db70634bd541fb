"""The executor: the tables' sums and nothing else, no tensor kept too long, gradients, equal bits."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.evolution import random_genome
from fewstep.search_spaces.schedule.genome import to_schedule
from fewstep.search_spaces.schedule.presets import PRESETS
from fewstep.search_spaces.schedule.solver_space import SolverSpace
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.sampling.compile import SolverTables, compile_schedule
from fewstep.tasks.sampling.execute import Program, sample
from fewstep.tasks.sampling.grids import preset_on_grid

NOISE = DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
SPACE = SolverSpace(NOISE.lambda_start, NOISE.lambda_end, tuple(range(1, 11)))


def schedules() -> list[SolverSchedule]:
    """Every preset at 1 and 7 calls and 14 random members of 2 to 8 calls."""
    presets = [preset_on_grid(f"{name}/karras-zero", NOISE, nfe) for name in PRESETS for nfe in (1, 7)]
    return presets + [to_schedule(random_genome(SPACE, 2 + i % 7, Random(i)), f"random-{i}") for i in range(14)]


SCHEDULES = [pytest.param(s, id=f"{s.name}-{s.nfe}") for s in schedules()]


def wavy(x: Tensor, time: float) -> Tensor:
    """An elementwise, bounded denoiser of correctly rounded operations: the same bits for any batch."""
    return x * (1.2 - 2e-4 * time) / (1 + 0.1 * x * x)


def naive(tables: SolverTables, denoiser: Callable[[Tensor, float], Tensor], x: Tensor) -> Tensor:
    """The definition: x_{k+1} = sum_j P[k, j] x_j + Q[k, j] eps_j, everything kept."""
    xs, eps = [x], []
    for k, time in enumerate(tables.times):
        eps.append(denoiser(xs[k], time) if tables.called[k] else torch.full_like(x, math.nan))
        used = [tables.Q[k, j] * eps[j] for j in range(k + 1) if tables.Q[k, j] != 0]
        xs.append(sum(used, sum(tables.P[k, j] * xs[j] for j in range(k + 1))))
    return xs[-1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_program_is_the_tables_sum(schedule: SolverSchedule, x64: Tensor) -> None:
    tables = compile_schedule(schedule, NOISE)
    expected = naive(tables, wavy, x64)
    assert torch.all(torch.isfinite(expected))
    torch.testing.assert_close(Program(tables)(wavy, x64), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sample(tables, wavy, x64), expected, rtol=1e-12, atol=1e-12)


def test_any_tables_run(x64: Tensor) -> None:
    # Learned coefficients are tables too; zeros, a first row without x and a call nobody needs included.
    rng = np.random.default_rng(0)
    P, Q = (np.tril(rng.normal(size=(5, 5)) * rng.integers(0, 2, (5, 5))) for _ in range(2))
    P[0, 0], P[3], Q[3] = 0.0, 0.0, 0.0
    P[4, 4], Q[4, 2] = 1.0, 0.5
    tables = SolverTables(P, Q, (4.0, 3.0, 2.0, 1.0, 0.0), (True,) * 5)
    torch.testing.assert_close(Program(tables)(wavy, x64), naive(tables, wavy, x64), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_input_and_outputs_are_left_alone(schedule: SolverSchedule, x64: Tensor) -> None:
    before, outputs = x64.clone(), []

    def denoiser(x: Tensor, time: float) -> Tensor:
        out = wavy(x, time)
        outputs.append((out, out.clone()))
        return out

    result = Program(compile_schedule(schedule, NOISE))(denoiser, x64)
    assert torch.equal(x64, before)
    assert all(torch.equal(out, kept) for out, kept in outputs)
    assert result.data_ptr() not in {x64.data_ptr(), *(out.data_ptr() for out, _ in outputs)}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_calls_and_their_times(schedule: SolverSchedule, x64: Tensor) -> None:
    times: list[float] = []

    def denoiser(x: Tensor, time: float) -> Tensor:
        times.append(time)
        assert type(time) is float  # a Python number: nothing to wait for on a device
        return wavy(x, time)

    sample(compile_schedule(schedule, NOISE), denoiser, x64)
    skipped = int(schedule.first_call != "model")
    assert len(times) == schedule.nfe
    # An implicit corrector's call comes at the time of the call before it.
    again = [False] * skipped + [step.implicit for step in schedule.steps]
    ends = schedule.lambdas[skipped : len(schedule.steps)]
    expected = [NOISE.time(v) for i, v in enumerate(ends) for _ in range(1 + (i > 0 and again[i + skipped - 1]))]
    assert times == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_only_tensors_that_a_later_row_needs_are_alive(schedule: SolverSchedule, x64: Tensor) -> None:
    tables = compile_schedule(schedule, NOISE)
    K = len(tables.times)
    nodes: dict[int, weakref.ref[Tensor]] = {}
    outputs: dict[int, weakref.ref[Tensor]] = {}
    calls = [k for k in range(K) if tables.called[k]]
    counter = iter(calls)

    def denoiser(x: Tensor, time: float) -> Tensor:
        k = next(counter)
        alive = {j for j, ref in nodes.items() if ref() is not None and j > 0}  # the caller holds x_0
        assert alive == {j for j in nodes if j > 0 and tables.P[k:, j].any()}
        alive = {j for j, ref in outputs.items() if ref() is not None}
        assert alive == {j for j in outputs if tables.Q[k:, j].any()}
        out = wavy(x, time)
        nodes[k], outputs[k] = weakref.ref(x), weakref.ref(out)
        return out

    with torch.inference_mode():
        result = Program(tables)(denoiser, x64)
    assert next(counter, None) is None
    assert all(ref() is None for j, ref in (*nodes.items(), *outputs.items()) if j > 0)
    assert result.shape == x64.shape


@pytest.mark.parametrize("name", PRESETS)
def test_memory_does_not_grow_with_the_steps(name: str, x64: Tensor) -> None:
    def most_alive(nfe: int) -> int:
        refs: list[weakref.ref[Tensor]] = []
        most = 0

        def denoiser(x: Tensor, time: float) -> Tensor:
            nonlocal most
            out = wavy(x, time)
            refs.extend((weakref.ref(x), weakref.ref(out)))
            most = max(most, sum(ref() is not None for ref in refs))
            return out

        sample(compile_schedule(preset_on_grid(f"{name}/uniform-lambda", NOISE, nfe), NOISE), denoiser, x64)
        return most

    assert most_alive(40) == most_alive(12) <= 12


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_flow(schedule: SolverSchedule, x64: Tensor) -> None:
    program = Program(compile_schedule(schedule, NOISE))
    x = x64[:1].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: program(wavy, v), (x,), rtol=1e-5, atol=1e-7)
    gain = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    # x needs no gradient here, the model's weights do: training through the sampler.
    assert torch.autograd.gradcheck(
        lambda g: program(lambda v, t: g * wavy(v, t), x64[:2]), (gain,), rtol=1e-5, atol=1e-7
    )


def test_sample_keeps_no_graph(x64: Tensor) -> None:
    tables = compile_schedule(preset_on_grid("unipc-2-bh2/uniform-t", NOISE, 4), NOISE)
    out = sample(tables, wavy, x64.clone().requires_grad_(True))
    assert not out.requires_grad
    assert out.is_inference()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_an_analytic_first_call_is_eps_equal_to_the_noise(
    name: str, scale: float, linear_vp: Any, two_bumps: Any, x64: Tensor
) -> None:
    noise = type(linear_vp)(scale=scale)
    lambdas = (noise.lambda_start, -2.5, -1.0, 0.5, 2.0, math.inf)
    model = PRESETS[name](lambdas)
    zero = model.model_copy(update={"first_call": "zero_x0"})
    assert zero.nfe == model.nfe - 1
    calls: list[float] = []
    exact = two_bumps.denoiser(noise.alpha_sigma)

    def counted(x: Tensor, time: float) -> Tensor:
        calls.append(time)
        return exact(x, time)

    def substituted(x: Tensor, time: float) -> Tensor:
        return x / scale if time == noise.lambda_start else exact(x, time)

    saved = Program(compile_schedule(zero, noise))(counted, scale * x64)
    assert len(calls) == zero.nfe
    expected = Program(compile_schedule(model, noise))(substituted, scale * x64)
    torch.testing.assert_close(saved, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 5, 5), (3, 7, 3)])
def test_any_batching_gives_equal_bits(schedule: SolverSchedule, shape: tuple[int, ...]) -> None:
    tables = compile_schedule(schedule, NOISE)
    x = torch.randn(7, *shape, generator=torch.Generator().manual_seed(1))
    whole = sample(tables, wavy, x)
    assert whole.dtype == torch.float32
    for sizes in ([1] * 7, [2, 5], [4, 3]):
        parts = torch.cat([sample(tables, wavy, part) for part in x.split(sizes)])
        assert torch.equal(parts, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_samples_have_the_noises_type(dtype: torch.dtype) -> None:
    tables = compile_schedule(preset_on_grid("dpmpp-2m/karras-zero", NOISE, 5), NOISE)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    out = sample(tables, wavy, x.to(dtype))
    assert out.dtype == dtype
    assert torch.all(torch.isfinite(out))
