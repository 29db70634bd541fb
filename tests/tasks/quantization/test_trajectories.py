"""Calibration data are what the network is given on its own trajectories."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import EvaluationError
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.quantization.trajectories import batches, chosen_steps, collect
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise

CONFIG = QuantizationConfig(images=5)


@given(st.integers(1, 60), st.integers(0, 70))
def test_steps_are_spread_from_the_first_to_the_last(calls: int, wanted: int) -> None:
    chosen = chosen_steps(calls, wanted)
    assert len(chosen) == (min(wanted, calls) if wanted else calls)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    if wanted != 1:
        assert chosen[-1] == calls - 1
        gaps = [b - a for a, b in pairwise(chosen)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_rows_are_the_networks_inputs_and_do_not_depend_on_the_batch(tiny_ddpm: Path) -> None:
    files = find_model(str(tiny_ddpm))
    denoiser, schedule = Denoiser(files), preset_on_grid("ddim/uniform-t", files.noise, 4)
    data = collect(denoiser, schedule, CONFIG)
    assert data.keys() == {"x", "time"}
    assert data["x"].shape == (20, 3, 8, 8)
    assert denoiser.calls == 20
    first = starting_noise(CONFIG.seed, 0, 5, files.shape, "cpu")
    ratio = data["x"][:5] / first
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4)
    times = data["time"].view(4, 5)
    assert (times == times[:, :1]).all()
    assert (times[1:] < times[:-1]).all()
    by_two = collect(denoiser, schedule, CONFIG, batch=2)
    assert torch.equal(by_two["time"], data["time"])
    assert torch.allclose(by_two["x"], data["x"], rtol=1e-4, atol=1e-3)


def test_some_of_the_steps(tiny_ddpm: Path) -> None:
    files = find_model(str(tiny_ddpm))
    denoiser, schedule = Denoiser(files), preset_on_grid("ddim/uniform-t", files.noise, 4)
    every = collect(denoiser, schedule, CONFIG)
    some = collect(denoiser, schedule, CONFIG.model_copy(update={"steps": 2}))
    assert torch.equal(some["x"], torch.cat([every["x"][:5], every["x"][15:]]))
    assert torch.equal(some["time"], torch.cat([every["time"][:5], every["time"][15:]]))


def test_data_take_part_in_gradients(tiny_ddpm: Path) -> None:
    files = find_model(str(tiny_ddpm))
    data = collect(Denoiser(files), preset_on_grid("ddim/uniform-t", files.noise, 2), CONFIG)
    assert not any(value.is_inference() for value in data.values())


def test_a_guided_trajectory_gives_both_halves() -> None:
    files = find_model("fashion-ddpm")
    denoiser = Denoiser(files, conditions=Conditions(labels="balanced", guidance=2.0))
    data = collect(denoiser, preset_on_grid("ddim/uniform-t", files.noise, 2), CONFIG.model_copy(update={"images": 2}))
    assert data["labels"].view(2, 2, 2)[:, 0].eq(files.null_label).all()
    assert data["labels"].view(2, 2, 2)[:, 1].tolist() == [[0, 1], [0, 1]]
    assert torch.equal(data["x"].view(2, 2, 2, -1)[:, 0], data["x"].view(2, 2, 2, -1)[:, 1])


def test_a_trajectory_that_explodes_is_refused(tiny_ddpm: Path) -> None:
    files = find_model(str(tiny_ddpm))
    denoiser, schedule = Denoiser(files), preset_on_grid("ddim/uniform-t", files.noise, 3)
    module = denoiser.network.module
    explodes = module.register_forward_hook(lambda m, i, output: type(output)(sample=output.sample * 1e30))
    with pytest.raises(EvaluationError, match=f"schedule {schedule.hash} explodes"):
        collect(denoiser, schedule, CONFIG)
    explodes.remove()
    module.conv_out.bias.fill_(float("inf"))
    with pytest.raises(EvaluationError, match="the network returned values that are not finite at call 1"):
        collect(denoiser, schedule, CONFIG)


@given(st.integers(1, 20), st.integers(1, 7))
def test_slices_hold_everything_once(rows: int, size: int) -> None:
    data = {"x": torch.arange(rows), "time": torch.arange(rows) * 2}
    pieces = list(batches(data, size))
    assert all(len(piece["x"]) <= size for piece in pieces)
    assert all(torch.equal(torch.cat([piece[name] for piece in pieces]), data[name]) for name in data)
