"""FewStepScheduler in the pipeline of every family: the stock scheduler's images where it holds the stock schedule."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FluxImg2ImgPipeline,
    UniPCMultistepScheduler,
)

import fewstep
from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.tasks.models.from_diffusers import config_of, from_diffusers, prediction_type
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.scheduler import FewStepScheduler
from fewstep.tasks.sampling.stock import stock_schedule

pytestmark = pytest.mark.usefixtures("unlogged")

STEPS = 10
# The tokens of the tiny FLUX images, whose pipeline shifts its times by their number.
TOKENS = 16
# Times of ten steps do not end where the next begins in these, so that they are read at four; their first alpha is
# zero to diffusers, and here the smallest that its other schedulers put in its place. Sana's stock scheduler takes the
# noise whole where the first time's share of it, 0.9997, is meant.
ZERO_SNR = ("sd_zero_snr", "cogvideox")
# Their own scheduler draws noise.
NOISY = ("ddpm", "kandinsky", "lcm", "ddpm_learned_variance")
READ = (
    "animatediff",
    "controlnet",
    "dit",
    "flux",
    "ldm",
    "pixart_sigma",
    "sana",
    "sd",
    "sd3",
    "sd_inpaint_plain",
    "sd_v",
    "sdxl",
    "wan",
    *ZERO_SNR,
)


def _stock(name: str, pipe: Any, steps: int) -> SolverSchedule:
    flux = name.startswith("flux")
    noise = from_diffusers(pipe.scheduler, TOKENS if flux else None, even=True if flux else None)
    return stock_schedule(config_of(pipe.scheduler), steps, noise)


def _counted(families: Any, name: str, pipe: Any, steps: int, **more: Any) -> tuple[Any, int]:
    family, calls = families.FAMILIES[name], []
    handle = getattr(pipe, family.network).register_forward_hook(lambda *_: calls.append(1))
    made = families.run(family, pipe, steps, **more)
    handle.remove()
    return made, len(calls)


@pytest.mark.parametrize("name", READ)
def test_the_stock_schedule_makes_the_stock_images(name: str, families: Any) -> None:
    pipe, steps = families.build(name), 4 if name in ZERO_SNR else STEPS
    expected, calls = _counted(families, name, pipe, steps)
    pipe.scheduler = FewStepScheduler.from_schedules(_stock(name, pipe, steps), pipe.scheduler)
    made, ours = _counted(families, name, pipe, steps)
    np.testing.assert_allclose(made, expected, atol=1e-3 if name in (*ZERO_SNR, "sana") else 5e-6)
    assert ours == calls


@pytest.mark.parametrize("name", ["sd_img2img", "sd_inpaint", "sd_inpaint_plain"])
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_a_run_begun_in_the_middle_starts_over_as_stock_solvers_do(name: str, kind: Any, families: Any) -> None:
    pipe = families.build(name)
    pipe.scheduler = stock = kind.from_config(pipe.scheduler.config)
    few = FewStepScheduler.from_schedules(_stock(name, pipe, STEPS), stock)
    for strength in (0.5, 0.3):
        pipe.scheduler = stock
        expected, calls = _counted(families, name, pipe, STEPS, strength=strength)
        pipe.scheduler = few
        made, ours = _counted(families, name, pipe, STEPS, strength=strength)
        np.testing.assert_allclose(made, expected, atol=1e-5)
        assert ours == calls == int(STEPS * strength)


def test_flow_pipelines_begin_in_the_middle_too(families: Any) -> None:
    parts = families.build("flux").components
    pipe = FluxImg2ImgPipeline(**{name: part for name, part in parts.items() if name != "image_encoder"})
    few = FewStepScheduler.from_schedules(_stock("flux", pipe, STEPS), pipe.scheduler)
    named = {**families.FAMILIES["flux"].arguments(), "image": [families.picture(i) for i in range(2)], "strength": 0.6}
    pipe.set_progress_bar_config(disable=True)
    made = []
    for scheduler in (pipe.scheduler, few):
        pipe.scheduler = scheduler
        noise = torch.Generator().manual_seed(0)
        made.append(pipe(num_inference_steps=STEPS, generator=noise, output_type="np", **named).images)
    np.testing.assert_allclose(*made, atol=5e-6)


# Of the sample that these make of what they are given, nothing is scaled but by the schedule.
@pytest.mark.parametrize("name", ["sd3", "flux", "wan", "sdxl", "cogvideox", "kandinsky", "controlnet", "animatediff"])
def test_an_analytic_first_call_costs_nothing(name: str, families: Any) -> None:
    family, pipe = families.FAMILIES[name], families.build(name)
    base, noise = pipe.scheduler, from_diffusers(pipe.scheduler)
    start = noise.lambda_start
    lambdas = (start, start + 0.5, 0.0, 1.0)
    # The first row as such hardly changes standard normal noise.
    more = Corrections(points=((0.5,), (0.0,) * 2, (0.0,) * 3))
    whole = SolverSchedule.build(lambdas=lambdas, steps=(Step(),) * 3, first_call="zero_x0", corrections=more)
    rest = SolverSchedule.build(lambdas=lambdas[1:], steps=(Step(),) * 2)
    x = torch.randn(family.latents, generator=torch.Generator().manual_seed(3))
    made = []
    tables = compile_schedule(whole, noise, prediction_type(config_of(base)))
    moved = float(tables.P[0, 0]) * noise.prior_scale(lambdas[0]) / noise.prior_scale(lambdas[1])
    assert moved > 1.2
    for schedule, latents in ((whole, x), (rest, moved * x)):
        pipe.scheduler = FewStepScheduler.from_schedules(schedule, base)
        images, calls = _counted(families, name, pipe, 2, latents=latents.clone())
        made.append(images)
        assert calls == (4 if name == "wan" else 2)
    np.testing.assert_allclose(*made, atol=5e-6)
    assert not getattr(pipe, family.network)._forward_pre_hooks


@pytest.mark.parametrize("name", NOISY)
def test_pipelines_whose_own_scheduler_draws_noise_take_a_schedule(name: str, families: Any) -> None:
    pipe = families.build(name)
    noise = from_diffusers(pipe.scheduler)
    schedule = preset_on_grid("dpmpp-2m/karras", noise, 4)
    pipe.scheduler = FewStepScheduler.from_schedules(schedule, pipe.scheduler)
    made, calls = _counted(families, name, pipe, 4)
    assert calls == 4
    other, _ = _counted(families, name, pipe, 4, generator=torch.Generator().manual_seed(1))
    assert np.abs(made - other).max() > 1e-3
    if "variance" in name or name == "kandinsky":
        # The same without the variance, which the scheduler leaves out.
        plain = {**pipe.scheduler.config["base"], "variance_type": "fixed_small"}
        pipe.scheduler = FewStepScheduler.from_schedules(schedule, plain)
        if name == "kandinsky":
            np.testing.assert_array_equal(_counted(families, name, pipe, 4)[0], made)
        else:
            with pytest.raises(ConfigurationError, match="variance_type"):
                _counted(families, name, pipe, 4)


def test_the_lcm_pipeline_shows_the_last_sample(families: Any) -> None:
    pipe = families.build("lcm")
    schedule = preset_on_grid("dpmpp-2m/karras", from_diffusers(pipe.scheduler), 4)
    pipe.scheduler = FewStepScheduler.from_schedules(schedule, pipe.scheduler)
    latents: list[torch.Tensor] = []

    def keep(_pipe: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        latents.append(given["latents"])
        return given

    family = families.FAMILIES["lcm"]
    shown = families.run(family, pipe, 4, output_type="latent", callback_on_step_end=keep)
    np.testing.assert_array_equal(shown, latents[-1].numpy())
    assert isinstance(pipe.vae, AutoencoderKL)
    assert len(latents) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sd", "flux", "animatediff"])
def test_pipelines_in_half_precision(name: str, dtype: torch.dtype, families: Any) -> None:
    pipe = families.build(name)
    schedule = preset_on_grid("unipc-3-bh2/uniform-t-zero", from_diffusers(pipe.scheduler, TOKENS), 4)
    pipe.scheduler = FewStepScheduler.from_schedules(schedule, pipe.scheduler)
    noise = torch.randn(families.FAMILIES[name].latents, generator=torch.Generator().manual_seed(3))
    wide, _ = _counted(families, name, pipe, 4, latents=noise)
    pipe.to(dtype)
    half, _ = _counted(families, name, pipe, 4, latents=noise.to(dtype))
    assert np.abs(half - wide).max() < 0.1


def test_what_a_flow_pipeline_is_asked_for(families: Any) -> None:
    pipe = families.build("flux")
    schedule = preset_on_grid("dpmpp-2m/uniform-t-zero", from_diffusers(pipe.scheduler, TOKENS), 4)
    pipe.scheduler = few = FewStepScheduler.from_schedules(schedule, pipe.scheduler)
    expected, _ = _counted(families, "flux", pipe, 4)
    few.set_timesteps(4)
    own = few.sigmas.tolist()
    assert own[-1] == 0
    for sigmas in (own, own[:-1]):
        np.testing.assert_array_equal(_counted(families, "flux", pipe, 4, sigmas=sigmas)[0], expected)
    with pytest.raises(ConfigurationError, match="a schedule has its own times"):
        _counted(families, "flux", pipe, 4, sigmas=[1.0, 0.7, 0.5, 0.1])
    with pytest.raises(ConfigurationError, match="3 sigmas: this scheduler holds schedules for 4"):
        _counted(families, "flux", pipe, 3)


def test_a_saved_pipeline_loads_where_only_fewstep_was_imported(
    families: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = families.build("ldm")
    schedule = preset_on_grid("dpmpp-2m/karras", from_diffusers(pipe.scheduler), 4)
    pipe.scheduler = FewStepScheduler.from_schedules(schedule, pipe.scheduler)
    expected, _ = _counted(families, "ldm", pipe, 4)
    pipe.save_pretrained(str(tmp_path))
    assert fewstep.__name__ in sys.modules
    monkeypatch.delitem(sys.modules, "fewstep.tasks.sampling.scheduler")
    loaded = DiffusionPipeline.from_pretrained(str(tmp_path))
    assert loaded.scheduler.schedules[4] == schedule
    np.testing.assert_array_equal(_counted(families, "ldm", loaded, 4)[0], expected)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_pure_noise_is_scaled_to_the_prior_once(name: str, families: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """These pipelines take noise as it is, and the schedule's first time may be one of less noise."""
    family, pipe = families.FAMILIES[name], families.build(name)
    base, noise = pipe.scheduler, from_diffusers(pipe.scheduler)
    lambdas = (noise.lambda_start + 0.9, 0.0, 1.0)
    schedule = SolverSchedule.build(lambdas=lambdas, steps=(Step(),) * 2)
    x = torch.randn(family.latents, generator=torch.Generator().manual_seed(3))
    pipe.scheduler = FewStepScheduler.from_schedules(schedule, base)
    seen: list[torch.Tensor] = []
    forward = pipe.transformer.forward

    def listening(**named: Any) -> Any:
        seen.append(named["hidden_states"])
        return forward(**named)

    monkeypatch.setattr(pipe.transformer, "forward", listening)
    for _ in range(2):
        families.run(family, pipe, 2, latents=x.clone())
        torch.testing.assert_close(seen[0][-2:], noise.prior_scale(lambdas[0]) * x)
        assert len(seen) == 2
        seen.clear()
        # Whoever scales it says so by asking for the scale.
        families.run(family, pipe, 2, latents=x * pipe.scheduler.init_noise_sigma)
        torch.testing.assert_close(seen[0][-2:], noise.prior_scale(lambdas[0]) * x)
        seen.clear()


@pytest.mark.parametrize(("first", "spared"), [("model", True), ("zero_x0", False)])
def test_a_network_that_is_not_given_the_sample(first: str, spared: bool, families: Any) -> None:
    """A schedule that needs another input there says so; a prior of nearly unit size is let be."""
    pipe = families.build("sd3")
    noise = from_diffusers(pipe.scheduler)
    schedule = preset_on_grid("dpmpp-2m/uniform-lambda", noise, 3).model_copy(update={"first_call": first})
    assert noise.prior_scale(schedule.lambdas[0]) == pytest.approx(0.999)
    pipe.scheduler = FewStepScheduler.from_schedules(schedule, pipe.scheduler)
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _module, given, named: (given, {**named, "hidden_states": named["hidden_states"] + 0.1}),
        with_kwargs=True,
    )
    if spared:
        assert np.isfinite(_counted(families, "sd3", pipe, schedule.nfe)[0]).all()
    else:
        with pytest.raises(ScheduleError, match="not given the sample itself"):
            _counted(families, "sd3", pipe, schedule.nfe)
    handle.remove()
    _counted(families, "sd3", pipe, schedule.nfe)
    assert not [name for name in pipe.transformer._forward_pre_hooks if name != handle.id]
