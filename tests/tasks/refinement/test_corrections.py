"""Corrections as part of a schedule: old hashes, files, other noise families, the diffusers scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from diffusers import DDPMScheduler

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.search_spaces.schedule.genome import to_genome
from fewstep.tasks.models.from_diffusers import from_diffusers
from fewstep.tasks.models.noise_families import FlowMatching, VarianceExploding
from fewstep.tasks.models.noise_schedule import ContinuousVP, NoiseSchedule
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.scheduler import FewStepScheduler


def test_a_schedule_without_corrections_is_written_as_before() -> None:
    schedule = preset_on_grid("unipc-2-bh2/karras-zero", ContinuousVP(), 4)
    assert "corrections" not in schedule.to_json()
    with_ = schedule.model_copy(update={"corrections": Corrections(shifts=(0.0, 0.1, 0.0, 0.0))})
    assert with_.hash != schedule.hash
    again = SolverSchedule.from_json(with_.to_json())
    assert again == with_
    assert again.hash == with_.hash


def test_tables_of_another_size_are_refused() -> None:
    schedule = preset_on_grid("ddim/karras-zero", ContinuousVP(), 3)
    even, sides = [[0.0] * 4] * 3, [[0.0] * 9, [0.0] * 25, [0.0] * 9]
    for wrong in (
        {"points": [[0.0]]}, {"outputs": [[0.0], [0.0], [0.0]]}, {"shifts": [0.0]}, {"shifts": [0, 0, 11]},
        {"point_filters": even}, {"point_filters": sides}, {"point_filters": [[0.0] * 9]},
        {"output_filters": [[[0.0] * 9]] * 3},
    ):  # fmt: skip
        text = schedule.model_dump(mode="json") | {"corrections": wrong}
        with pytest.raises(ScheduleError, match=r"corrections|nodes|row|shifts|kernel"):
            SolverSchedule.build(**text)


def test_the_search_space_does_not_take_a_corrected_schedule_for_its_formula() -> None:
    schedule = preset_on_grid("dpmpp-2m/karras-zero", ContinuousVP(), 3)
    assert to_genome(schedule)
    with pytest.raises(ScheduleError, match="does not contain"):
        to_genome(schedule.model_copy(update={"corrections": Corrections(shifts=(0.0, 0.1, 0.0))}))


@pytest.mark.parametrize(("family", "sigma_max"), [(ContinuousVP(), 150.0), (FlowMatching(), 900.0)])
def test_corrections_mean_the_same_in_every_noise_family(
    family: NoiseSchedule, sigma_max: float, corrections: Callable[..., Corrections]
) -> None:
    """Data N(m, s^2) has a closed-form eps at a point of any family; samples must not tell which one made them."""
    exploding = VarianceExploding(1e-3, sigma_max)
    schedule = preset_on_grid("unipc-2-bh2/karras-zero", exploding, 4)
    more = corrections(schedule, 0.1, filters=3).model_copy(update={"shifts": ()})
    schedule = schedule.model_copy(update={"corrections": more})
    noise = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = (_sampled(schedule, each, noise) for each in (family, exploding))
    torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-7)


def _sampled(schedule: SolverSchedule, family: NoiseSchedule, y: torch.Tensor) -> torch.Tensor:
    tables = compile_schedule(schedule, family, "epsilon")
    at = {tables.times[i]: family.alpha_sigma(schedule.lambdas[i]) for i in range(len(tables.times))}

    def eps(x: torch.Tensor, time: float) -> torch.Tensor:
        alpha, sigma = at[time]
        return sigma * (x - alpha * 0.4) / ((alpha * 0.3) ** 2 + sigma**2)

    radius = math.hypot(*family.alpha_sigma(schedule.lambdas[0]))
    return Program(tables)(eps, y * radius)


def test_told_times_move_and_stay_within_the_model() -> None:
    noise = ContinuousVP()
    schedule = preset_on_grid("ddim/karras-zero", noise, 3)
    shifts = (-0.5, 0.2, -0.1)
    moved = schedule.model_copy(update={"corrections": Corrections(shifts=shifts)})
    plain, told = compile_schedule(schedule, noise), compile_schedule(moved, noise)
    np.testing.assert_array_equal(told.P, plain.P)
    np.testing.assert_array_equal(told.Q, plain.Q)
    assert told.times[0] == plain.times[0], "nothing is noisier than the start"
    assert told.times[1:] == tuple(noise.time(schedule.lambdas[i] + shifts[i]) for i in (1, 2))


@pytest.mark.parametrize("first_call", ["model", "mean_x0"])
def test_a_filter_adds_what_is_seen_through_its_kernel(first_call: str) -> None:
    noise, rng = ContinuousVP(), np.random.default_rng(0)
    mean = rng.normal(0, 0.3, (2, 5, 6))
    schedule = preset_on_grid("ddim/karras-zero", noise, 3).model_copy(update={"first_call": first_call})
    own, other = rng.normal(0, 0.1, (2, 3, 3))
    zeros = (0.0,) * 9
    # Of the last row: the newest point under one kernel, the first call's noise under another.
    more = Corrections(
        point_filters=(zeros, zeros, tuple(own.ravel().tolist())),
        output_filters=((zeros,), (zeros,) * 2, (tuple(other.ravel().tolist()), zeros, zeros)),
    )
    statistics = ModelStatistics(mean=mean.astype(np.float32))
    plain, filtered = (
        compile_schedule(s, noise, "epsilon", statistics)
        for s in (schedule, schedule.model_copy(update={"corrections": more}))
    )
    x = torch.randn(4, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    def network(sample: torch.Tensor, time: float) -> torch.Tensor:
        seen.append(sample)
        return torch.tanh(sample) * (1 + 1e-3 * time)

    without, with_ = Program(plain)(network, x), Program(filtered)(network, x)
    alpha, sigma = noise.alpha_sigma(schedule.lambdas[0])
    if first_call == "model":
        first = torch.tanh(x) * (1 + 1e-3 * plain.times[0])
    else:
        first = (x - alpha * torch.from_numpy(mean.astype(np.float32)).double()) / sigma
    end, last = (math.hypot(*noise.alpha_sigma(schedule.lambdas[i])) for i in (-1, 2))
    expected = end * (_under(own, seen[-1] / last) + _under(other, first))
    torch.testing.assert_close(with_ - without, expected, rtol=1e-6, atol=1e-6)


def _under(kernel: np.ndarray[Any, Any], x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(scipy.ndimage.correlate(x.numpy(), kernel[None, None], mode="constant"))


def test_what_is_no_image_is_not_filtered(corrections: Callable[..., Corrections]) -> None:
    schedule = preset_on_grid("ddim/karras-zero", ContinuousVP(), 2)
    schedule = schedule.model_copy(update={"corrections": corrections(schedule, 0.1, filters=3)})
    tables = compile_schedule(schedule, ContinuousVP())
    with pytest.raises(ScheduleError, match="filters images"):
        Program(tables)(lambda x, time: x, torch.zeros(1, 16, 64))
    # Frames of a film are images.
    assert Program(tables)(lambda x, time: x, torch.zeros(1, 4, 3, 8, 8)).shape == (1, 4, 3, 8, 8)


@pytest.mark.parametrize("first_call", ["model", "zero_x0"])
def test_the_exported_scheduler_makes_the_same_images(first_call: str, corrections: Callable[..., Corrections]) -> None:
    base = DDPMScheduler(num_train_timesteps=1000)
    noise = from_diffusers(base)
    schedule = preset_on_grid("unipc-3-bh2/karras-zero", noise, 5).model_copy(update={"first_call": first_call})
    schedule = schedule.model_copy(update={"corrections": corrections(schedule, 0.05, filters=3)})
    scheduler = FewStepScheduler.from_schedules(SolverSchedule.from_json(schedule.to_json()), base)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def network(sample: torch.Tensor, time: float) -> torch.Tensor:
        return torch.tanh(sample) * (1 + 1e-3 * time)

    tables = compile_schedule(schedule, noise, "epsilon")
    expected = Program(tables)(network, x * tables.prior_scale)
    scheduler.set_timesteps(schedule.nfe)
    sample = x * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        output = network(scheduler.scale_model_input(sample, time), float(time))
        sample = scheduler.step(output, time, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)
