"""A model's own scheduler, whatever its pipeline ships: the samples of diffusers' loop, or the reason why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.models.scheduler_settings import CLASSES
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample
from fewstep.tasks.sampling.own_schedule import own_schedule


def _denoiser(x: torch.Tensor, time: float) -> torch.Tensor:
    """Noise that bends in state and time, so that a wrong time or order shows."""
    return torch.tanh(1.3 * x) * (0.6 + time / 2500)


def _files(tiny: Path, folder: Path, name: str, **config: Any) -> ModelFiles:
    root = Path(shutil.copytree(tiny, folder / "model"))
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": name, **config}))
    return find_model(str(root))


def _ours(files: ModelFiles, nfe: int, x: torch.Tensor) -> torch.Tensor:
    own = own_schedule(files, nfe)
    assert own.schedule is not None, own.note
    assert own.schedule.nfe == nfe
    tables = compile_schedule(own.schedule, files.noise, files.prediction_type)
    return sample(tables, _denoiser, x * tables.prior_scale)


def _theirs(scheduler: Any, nfe: int, x: torch.Tensor, **step: Any) -> torch.Tensor:
    """diffusers' loop from standard normal noise."""
    scheduler.set_timesteps(nfe)
    x = x * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        output = _denoiser(scheduler.scale_model_input(x, time), float(time))
        x = scheduler.step(output, time, x, return_dict=False, **step)[0]
    return x


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_a_stochastic_or_clipping_one_is_shown_by_ddim_on_its_timesteps(
    tiny_ddpm: Path, tmp_path: Path, x: torch.Tensor, name: str, clip: bool, spacing: str
) -> None:
    files = _files(tiny_ddpm, tmp_path, name, timestep_spacing=spacing, clip_sample=clip)
    ddim = diffusers.DDIMScheduler.from_config(files.scheduler_config)
    for nfe in (4, 5):
        told = own_schedule(files, nfe)
        if name == "DDPMScheduler":
            assert told.note.startswith("DDPMScheduler is stochastic: ")
        if told.note:
            assert told.note.endswith("is shown instead")
            assert told.name == f"{name} by DDIM"
        if spacing == "linspace":
            # There diffusers' steps do not end where the next ones begin.
            continue
        theirs = _theirs(ddim, nfe, x, use_clipped_model_output=clip)
        torch.testing.assert_close(_ours(files, nfe, x), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
        ("UniPCMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ],
)
def test_what_starts_late_is_its_scheduler_s_loop_from_pure_noise(
    tiny_ddpm: Path, tmp_path: Path, x: torch.Tensor, name: str, config: dict[str, Any]
) -> None:
    files = _files(tiny_ddpm, tmp_path, name, **config)
    own = own_schedule(files, 4)
    assert (own.name, own.note) == (name, "")
    assert own.schedule is not None
    assert own.schedule.first_call == "zero_x0"
    theirs = _theirs(getattr(diffusers, name).from_config(files.scheduler_config), 4, x)
    torch.testing.assert_close(_ours(files, 4, x), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", sorted(CLASSES - {"DPMSolverSDEScheduler"}))  # That one needs torchsde.
def test_every_scheduler_has_a_line_or_a_reason_in_one(tiny_ddpm: Path, tmp_path: Path, name: str) -> None:
    files = _files(tiny_ddpm, tmp_path, name)
    for nfe in (1, 4, 5):
        own = own_schedule(files, nfe)
        assert own.schedule is not None or own.note
        assert own.schedule is None or own.schedule.nfe == nfe
        assert own.name in (name, f"{name} by DDIM")
        assert ("by DDIM" in own.name) == ("is shown instead" in own.note)
        assert len(" ".join(own.note.split()).splitlines()) <= 1


def test_a_number_of_calls_that_cannot_be_made_has_its_reason(tiny_ddpm: Path, tmp_path: Path) -> None:
    own = own_schedule(_files(tiny_ddpm, tmp_path, "HeunDiscreteScheduler"), 4)
    assert own.schedule is None
    assert "cannot make 4 calls: give an odd number" in own.note
