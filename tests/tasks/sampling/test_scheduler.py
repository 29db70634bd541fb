"""FewStepScheduler in real diffusers pipelines: the same images as our own sampler, also after saving and loading."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import diffusers
import diffusers.pipelines.ddpm.pipeline_ddpm as ddpm_module
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
)

import fewstep
from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Step, Threshold
from fewstep.search_spaces.schedule.formula import Formula, pseudo_corrector
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.from_diffusers import from_diffusers
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.sampling.scheduler import FewStepScheduler
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

COUNT = 3
PROMPTS = ["a red cat", "two dogs, blue"]


def _schedules(folder: Path) -> dict[str, SolverSchedule]:
    """Schedules with one decision each that a scheduler has to walk with care."""
    noise = find_model(str(folder)).noise
    plain = preset_on_grid("unipc-3-bh2/karras-zero", noise, 4)
    start, end = noise.lambda_start, noise.lambda_end
    implicit = Step(predictor=Formula(), corrector=pseudo_corrector(1, 1, "none"), implicit=True)
    corrected = SolverSchedule.build(
        lambdas=(start, -1.0, end - 1.0),
        steps=(Step(), Step(corrector=pseudo_corrector(2, 2, "none"))),
        name="corrected to the end",
    )
    return {
        "plain": plain,
        "analytic first step": plain.model_copy(update={"first_call": "zero_x0"}),
        "threshold": plain.model_copy(update={"threshold": Threshold(kind="dynamic")}),
        "implicit": SolverSchedule.build(lambdas=(start, 0.0, math.inf), steps=(implicit, Step()), name="implicit"),
        "corrected end": corrected,
    }


def _own(folder: Path, schedule: SolverSchedule, conditions: Conditions | None = None) -> npt.NDArray[np.float32]:
    worker = Worker(WorkerSettings(Subject(str(folder), conditions=conditions or Conditions())))
    images = worker.render(schedule.to_json(), 0, 0, COUNT)
    return np.asarray((images / 2 + 0.5).permute(0, 2, 3, 1).numpy(), np.float32)


@pytest.fixture
def ddpm(tiny_ddpm: Path, monkeypatch: pytest.MonkeyPatch) -> DDPMPipeline:
    """The pipeline, whose starting noise is ours."""
    monkeypatch.setattr(
        ddpm_module, "randn_tensor", lambda shape, **_named: starting_noise(0, 0, shape[0], shape[1:], "cpu")
    )
    pipeline = DDPMPipeline.from_pretrained(str(tiny_ddpm))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _run_ddpm(pipeline: Any, steps: int) -> npt.NDArray[np.float32]:
    return np.asarray(pipeline(batch_size=COUNT, num_inference_steps=steps, output_type="np").images)


@pytest.mark.parametrize("kind", ["plain", "analytic first step", "threshold", "implicit", "corrected end"])
def test_a_ddpm_pipeline_makes_our_images(kind: str, ddpm: DDPMPipeline, tiny_ddpm: Path, tmp_path: Path) -> None:
    schedule = _schedules(tiny_ddpm)[kind]
    steps = schedule.nfe
    ddpm.scheduler = FewStepScheduler.from_schedules(schedule, ddpm.scheduler)
    expected = _own(tiny_ddpm, schedule)
    np.testing.assert_allclose(_run_ddpm(ddpm, steps), expected, atol=1e-5)
    np.testing.assert_allclose(_run_ddpm(ddpm, steps), expected, atol=1e-5)
    ddpm.save_pretrained(str(tmp_path))
    loaded = DiffusionPipeline.from_pretrained(str(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is fewstep.FewStepScheduler
    np.testing.assert_allclose(_run_ddpm(loaded, steps), expected, atol=1e-5)


def test_an_input_that_a_loop_of_ones_own_does_not_prepare_is_refused_not_wrong(tiny_ddpm: Path) -> None:
    schedule = _schedules(tiny_ddpm)["analytic first step"]
    scheduler = FewStepScheduler.from_schedules(schedule, DDPMScheduler())
    x = torch.zeros(1, 3, 8, 8)
    scheduler.set_timesteps(schedule.nfe)
    with pytest.raises(ScheduleError, match="scale_model_input"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_stable_diffusion_makes_our_images(guidance: float, tiny_stable_diffusion: Path, tmp_path: Path) -> None:
    folder = tiny_stable_diffusion
    schedules = _schedules(folder)
    pair = [schedules["plain"], schedules["analytic first step"]]
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder))
    pipeline.scheduler = FewStepScheduler.from_schedules(pair, pipeline.scheduler)
    pipeline.save_pretrained(str(tmp_path))
    conditions = Conditions(prompts="\n".join(PROMPTS), guidance=guidance, negative_prompt="grey")
    latents = starting_noise(0, 0, COUNT, find_model(str(folder)).shape, "cpu")
    for each in (pipeline, DiffusionPipeline.from_pretrained(str(tmp_path))):
        each.set_progress_bar_config(disable=True)
        for schedule in pair:
            images = each(
                prompt=[PROMPTS[i % 2] for i in range(COUNT)],
                negative_prompt=["grey"] * COUNT,
                guidance_scale=guidance,
                num_inference_steps=schedule.nfe,
                latents=latents,
                height=16,
                width=16,
                output_type="np",
            ).images
            np.testing.assert_allclose(images, _own(folder, schedule, conditions), atol=1e-5)


def _walk(scheduler: FewStepScheduler, steps: int, x: torch.Tensor, model: Any) -> torch.Tensor:
    """The loop of a latent diffusion pipeline."""
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    "base",
    [
        DDPMScheduler(prediction_type="v_prediction"),
        EDMEulerScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=["v", "edm", "flow"],
)
@pytest.mark.parametrize("first", ["model", "zero_x0"])
def test_every_family_walks_as_the_executor_does(base: Any, first: str) -> None:
    noise = from_diffusers(base)
    schedule = preset_on_grid("dpmpp-2m/uniform-lambda-zero", noise, 5).model_copy(update={"first_call": first})
    scheduler = FewStepScheduler.from_schedules(schedule, base)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def model(x: torch.Tensor, t: Any) -> torch.Tensor:
        return torch.tanh(x) * math.cos(float(t) / 700)

    output = scheduler._output
    tables = compile_schedule(schedule, noise, output)
    # The pipeline tells times in single precision.
    expected = sample(tables, lambda x, t: model(x, torch.tensor(t, dtype=torch.float32)), x * tables.prior_scale)
    torch.testing.assert_close(_walk(scheduler, schedule.nfe, x, model), expected, rtol=1e-12, atol=1e-12)


def test_statistics_travel_with_the_scheduler(tmp_path: Path, tiny_ddpm: Path) -> None:
    base = DDPMScheduler()
    noise = from_diffusers(base)
    mean = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 4, 4)
    schedule = preset_on_grid("dpmpp-2m/karras-zero", noise, 4).model_copy(update={"first_call": "mean_x0"})
    statistics = ModelStatistics(mean=mean)
    scheduler = FewStepScheduler.from_schedules(schedule, base, statistics)
    scheduler.save_pretrained(str(tmp_path))
    loaded = FewStepScheduler.from_pretrained(str(tmp_path))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    both = [_walk(s, 3, x, lambda x, t: torch.sin(x)) for s in (scheduler, loaded)]
    torch.testing.assert_close(*both, rtol=0, atol=0)
    tables = compile_schedule(schedule, noise, "epsilon", statistics)
    torch.testing.assert_close(both[0], sample(tables, lambda x, t: torch.sin(x), x), rtol=1e-5, atol=1e-6)


def test_half_precision_is_summed_in_single() -> None:
    schedule = preset_on_grid("unipc-3-bh2/karras-zero", from_diffusers(DDPMScheduler()), 6)
    scheduler = FewStepScheduler.from_schedules(schedule, DDPMScheduler())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    half = _walk(scheduler, 6, x, lambda x, t: torch.tanh(x))
    single = _walk(scheduler, 6, x.float(), lambda x, t: torch.tanh(x))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), single, rtol=2e-2, atol=2e-2)


def test_what_cannot_be_done_is_said() -> None:
    noise = from_diffusers(DDIMScheduler())
    schedule = preset_on_grid("ddim/karras-zero", noise, 4)
    scheduler = FewStepScheduler.from_schedules(schedule, DDIMScheduler())
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ScheduleError, match="set_timesteps"):
        scheduler.step(x, 0, x)
    with pytest.raises(ConfigurationError, match="holds schedules for 4 steps"):
        scheduler.set_timesteps(5)
    scheduler.set_timesteps(4)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ScheduleError, match="in order"):
        scheduler.step(x, scheduler.timesteps[2], x)
    for t in scheduler.timesteps[1:]:
        scheduler.step(x, t, x)
    with pytest.raises(ScheduleError, match="all 4 steps are done"):
        scheduler.step(x, scheduler.timesteps[-1], x)
    with pytest.raises(ConfigurationError, match="same number"):
        FewStepScheduler.from_schedules([schedule, schedule], DDIMScheduler())
    with pytest.raises(ConfigurationError, match="from_schedules"):
        FewStepScheduler()


def test_added_noise_is_the_models_own() -> None:
    base = DDPMScheduler()
    scheduler = FewStepScheduler.from_schedules(preset_on_grid("ddim/karras", from_diffusers(base), 4), base)
    x, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([10, 500, 900])
    torch.testing.assert_close(scheduler.add_noise(x, noise, t), base.add_noise(x, noise, t), rtol=1e-5, atol=1e-6)


def _found(stock: Any) -> FewStepScheduler:
    return FewStepScheduler.from_schedules(preset_on_grid("unipc-2-bh2/karras-zero", from_diffusers(stock), 4), stock)


STOCK = [
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"),
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=400),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    EDMEulerScheduler(sigma_max=20.0, sigma_data=0.7),
]


@pytest.mark.parametrize("stock", STOCK, ids=lambda stock: type(stock).__name__)
def test_back_to_any_stock_scheduler_as_between_stock_schedulers(stock: Any, tmp_path: Path) -> None:
    stock = type(stock).from_config({k: v for k, v in stock.config.items() if k != "_use_default_values"})
    found = _found(stock)
    found.save_pretrained(tmp_path)
    for scheduler in (found, FewStepScheduler.from_pretrained(tmp_path)):
        for kind in (type(stock), diffusers.DPMSolverMultistepScheduler, diffusers.EulerDiscreteScheduler):
            direct, back = kind.from_config(stock.config), kind.from_config(scheduler.config)
            for name in dict(direct.config):
                if not name.startswith("_"):
                    assert back.config[name] == direct.config[name], (kind, name)
        again = FewStepScheduler.from_config(type(stock).from_config(scheduler.config).config)
        assert again.schedules == found.schedules
        assert again.noise.lambda_start == found.noise.lambda_start


def test_defaults_go_along_where_another_scheduler_has_others() -> None:
    heun = diffusers.HeunDiscreteScheduler.from_config(_found(DDIMScheduler()).config)
    assert (heun.config.beta_start, heun.config.beta_end) == (0.0001, 0.02)


@pytest.mark.parametrize("kind", [diffusers.DDIMPipeline, diffusers.PNDMPipeline])
def test_a_pipeline_that_would_replace_the_scheduler_says_so(kind: Any, tiny_ddpm: Path) -> None:
    files = find_model(str(tiny_ddpm))
    unet, stock = diffusers.UNet2DModel.from_pretrained(str(files.unet)), DDPMScheduler()
    found = _found(stock)
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} replaces the scheduler"):
        kind(unet, found)
    pipe = kind(unet, stock)
    pipe.scheduler = found
    pipe.set_progress_bar_config(disable=True)
    if kind is diffusers.DDIMPipeline:
        assert np.isfinite(pipe(num_inference_steps=4, output_type="np").images).all()
        with pytest.raises(ConfigurationError, match="eta="):
            pipe(num_inference_steps=4, output_type="np", eta=0.5)


@pytest.mark.parametrize("name", ["utils", "UNet2DModel", None, 3])
def test_a_base_that_is_no_scheduler_is_refused(name: object) -> None:
    schedule = preset_on_grid("ddim/uniform-t", from_diffusers(DDPMScheduler()), 2)
    with pytest.raises(ConfigurationError, match="describes no noise schedule"):
        FewStepScheduler.from_schedules(schedule, {"_class_name": name})


def test_a_zero_snr_noise_prediction_is_no_base() -> None:
    with pytest.raises(ConfigurationError, match="zero terminal SNR"):
        _found(DDIMScheduler(rescale_betas_zero_snr=True))


@pytest.mark.parametrize("shape", [(2, 16, 6), (2, 3, 2, 4, 4)], ids=["packed", "video"])
def test_samples_have_any_shape(shape: tuple[int, ...]) -> None:
    base = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = preset_on_grid("unipc-3-bh2/uniform-t-zero", from_diffusers(base), 5)
    scheduler = FewStepScheduler.from_schedules(schedule.model_copy(update={"first_call": "zero_x0"}), base)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flat = _walk(scheduler, 4, x.flatten(1), lambda x, t: torch.tanh(x))
    torch.testing.assert_close(_walk(scheduler, 4, x, lambda x, t: torch.tanh(x)).flatten(1), flat, rtol=0, atol=0)


def test_statistics_of_pixels_are_of_one_shape() -> None:
    schedule = preset_on_grid("dpmpp-2m/karras-zero", from_diffusers(DDPMScheduler()), 4)
    schedule = schedule.model_copy(update={"first_call": "mean_x0"})
    mean = ModelStatistics(mean=np.ones((3, 4, 4), np.float32))
    scheduler = FewStepScheduler.from_schedules(schedule, DDPMScheduler(), mean)
    with pytest.raises(ConfigurationError, match="per pixel of 3x4x4, the sample is 3x2x4x4"):
        _walk(scheduler, 3, torch.zeros(2, 3, 2, 4, 4), lambda x, t: x)


def test_the_steps_asked_for_in_diffusers_other_ways() -> None:
    base = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = preset_on_grid("dpmpp-2m/uniform-t-zero", from_diffusers(base), 4)
    scheduler = FewStepScheduler.from_schedules(schedule, base)
    scheduler.set_timesteps(4, mu=0.6)
    times, own = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
    assert own == pytest.approx([*(t / 1000 for t in times), 0.0])
    even = np.linspace(1.0, 1 / 4, 4)
    whole = np.linspace(1000, 1, 4).astype(int)
    for asked in (
        {"sigmas": even},
        {"sigmas": np.linspace(1, 0, 5)[:-1].tolist()},
        {"sigmas": torch.tensor([*even, 0.0])},
        {"sigmas": even, "num_inference_steps": 4},
        {"sigmas": own},
        {"timesteps": times},
        # As CogView4's pipeline does.
        {"timesteps": whole, "sigmas": whole / 1000},
    ):
        scheduler.set_timesteps(**asked)
        assert scheduler.timesteps.tolist() == times
    for asked, message in (
        ({"sigmas": [1.0, 0.9, 0.5, 0.1]}, "own times"),
        ({"sigmas": [0.6, 0.45, 0.3, 0.15]}, "own times"),
        ({"sigmas": [1.0, 0.9, 0.8, 0.7]}, "own times"),
        ({"timesteps": [1000, 750, 500, 250]}, "own times"),
        ({"timesteps": [1000, 750], "num_inference_steps": 4}, r"ask for \[2, 4\] steps"),
        ({"sigmas": [1.0, math.nan, 0.5, 0.1]}, "finite numbers"),
        ({"sigmas": 0.5}, "finite numbers"),
        ({"num_inference_steps": 4.0}, "whole number"),
        ({"num_inference_steps": 4, "mu": math.nan}, "mu=nan"),
        ({"num_inference_steps": 4, "original_inference_steps": 50}, "original_inference_steps=50"),
        ({}, "how many steps"),
        ({"sigmas": [1.0, 2 / 3, 1 / 3]}, "3 sigmas: this scheduler holds schedules for 4 steps"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            scheduler.set_timesteps(**asked)


@pytest.mark.parametrize("stock", STOCK, ids=lambda stock: type(stock).__name__)
def test_noise_is_added_at_the_times_of_a_run_and_of_the_model(stock: Any) -> None:
    found = _found(stock)
    found.set_timesteps(4)
    x, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    for i, (time, sigma) in enumerate(zip(found.timesteps, found.sigmas, strict=False)):
        flow = isinstance(stock, FlowMatchEulerDiscreteScheduler)
        preserving = hasattr(stock, "alphas_cumprod")
        norm = float((1 + sigma**2) ** 0.5) if preserving else 1.0
        expected = ((1 - sigma) * x + sigma * noise) if flow else (x + sigma * noise) / norm
        torch.testing.assert_close(found.add_noise(x, noise, time[None]), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.scale_noise(x, time[None], noise), expected, rtol=1e-4, atol=1e-4)
        assert found.step_index is None
        assert i < 4
    half = found.add_noise(x.half(), noise.half(), found.timesteps[1:2])
    assert half.dtype == torch.float16
    with pytest.raises(ConfigurationError, match="needs the noise"):
        found.scale_noise(x, found.timesteps[:1])


def test_what_pipelines_read_off_a_scheduler_is_the_models() -> None:
    stock = STOCK[0]
    found = _found(stock)
    torch.testing.assert_close(found.alphas_cumprod, stock.alphas_cumprod)
    assert not hasattr(found, "shift")
    assert DDIMScheduler in found.compatibles
    assert diffusers.EulerDiscreteScheduler in found.compatibles
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = FewStepScheduler.from_schedules(preset_on_grid("ddim/uniform-t", from_diffusers(flow), 4), flow)
    assert made.shift == 3.0
    assert not hasattr(made, "alphas_cumprod")
    assert FlowMatchEulerDiscreteScheduler in made.compatibles


def test_a_run_begins_where_the_pipeline_says() -> None:
    """By set_begin_index, or by the first time that is stepped at; a finished run may begin anew."""
    found = _found(STOCK[0])
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def run(first: int, said: bool) -> torch.Tensor:
        sample = x
        if said:
            found.set_begin_index(first)
        for t in found.timesteps[first:]:
            sample = found.step(torch.tanh(sample), t, sample).prev_sample
        return sample

    found.set_timesteps(4)
    whole = run(0, False)
    torch.testing.assert_close(run(0, False), whole, rtol=0, atol=0)
    late = []
    for said in (False, True):
        found.set_timesteps(4)
        late.append(run(2, said))
        assert found.step_index == 4
    torch.testing.assert_close(*late, rtol=0, atol=0)
    assert not torch.equal(late[0], whole)
    with pytest.raises(ConfigurationError, match="begin_index=9"):
        found.set_begin_index(9)
    found.set_timesteps(4)
    with pytest.raises(ScheduleError, match="none of this run's"):
        found.step(x, torch.tensor(3.5), x)


def test_a_sample_noised_for_an_analytic_first_call_is_not_noised_again() -> None:
    """Image to image at full strength hands over a noised image, not the pure noise that the first row is for."""
    base = DDIMScheduler()
    start = from_diffusers(base).lambda_start
    lambdas = (start, start + 0.9, 0.0, math.inf)
    whole = SolverSchedule.build(lambdas=lambdas, steps=(Step(),) * 3, first_call="zero_x0")
    rest = SolverSchedule.build(lambdas=lambdas[1:], steps=(Step(),) * 2)
    x, noise = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    made = []
    for schedule in (whole, rest):
        scheduler = FewStepScheduler.from_schedules(schedule, base)
        scheduler.set_timesteps(2)
        sample = scheduler.add_noise(x, noise, scheduler.timesteps[:1])
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, t)
            torch.testing.assert_close(scaled, sample, rtol=0, atol=0)
            sample = scheduler.step(torch.tanh(scaled), t, sample).prev_sample
        made.append(sample)
    torch.testing.assert_close(*made, rtol=1e-6, atol=1e-6)


def test_a_setting_of_another_schedulers_step_is_refused() -> None:
    found = _found(STOCK[0])
    found.set_timesteps(4)
    x = torch.zeros(1, 1, 2, 2)
    for asked in ({"variance_noise": x}, {"per_token_timesteps": x}, {"eta": 0.5}, {"use_clipped_model_output": True}):
        with pytest.raises(ConfigurationError, match=next(iter(asked))):
            found.step(x, found.timesteps[0], x, **asked)
    with pytest.raises(ConfigurationError, match="learned variance"):
        found.step(x.repeat(1, 2, 1, 1), found.timesteps[0], x)


def test_copies_and_pickles_are_schedulers() -> None:
    found = _found(STOCK[0])
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = _walk(found, 4, x, lambda x, t: torch.tanh(x))
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        torch.testing.assert_close(_walk(other, 4, x, lambda x, t: torch.tanh(x)), expected, rtol=0, atol=0)
