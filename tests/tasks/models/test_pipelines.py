"""Whole pipelines as models: the images that their own call makes, from the same noise and by the same steps."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from fewstep.errors import ConfigurationError, DataError, FewstepError, ModelError, ScheduleError
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ZOO, find_model
from fewstep.tasks.models.from_diffusers import config_of, from_diffusers, prediction_type
from fewstep.tasks.models.loading import Loading
from fewstep.tasks.models.noise_families import FlowMatching, lambda_of_strength
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.models.pipelines.arguments import shown_image
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import parse_schedule, preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.sampling.own_schedule import own_schedule
from fewstep.tasks.sampling.scheduler import FewStepScheduler
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

Folder = Callable[[str], Path]
# Of these, a thousand trained steps can be parted evenly, as a schedule needs it.
STEPS = 4


def _worker(folder: Path, conditions: Conditions, **more: Any) -> Worker:
    return Worker(WorkerSettings(Subject(str(folder), "inception", conditions=conditions, **more)))


def _images(worker: Worker, schedule: SolverSchedule, count: int = 2) -> torch.Tensor:
    return worker.render(as_point(schedule), 0, 0, count)


def _deterministic(scheduler: Any) -> Any:
    """A scheduler of the same noise whose steps a schedule can be, from pure noise on."""
    config = scheduler.config
    if config.get("use_dynamic_shifting"):
        return scheduler
    if config.get("use_flow_sigmas") or "FlowMatch" in type(scheduler).__name__:
        return FlowMatchEulerDiscreteScheduler(shift=config.get("flow_shift", config.get("shift", 1.0)))
    kind = type(scheduler) if type(scheduler).__name__.startswith("CogVideoX") else DDIMScheduler
    return kind.from_config(config, clip_sample=False, timestep_spacing="trailing")


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize(
    "name",
    ["animatediff", "cogvideox", "controlnet", "flux", "pixart_sigma", "sana", "sd", "sd3", "sd_v", "sdxl", "wan"],
)
def test_a_pipeline_makes_what_its_own_call_makes(
    name: str, families: Any, family_folder: Folder, tmp_path: Path
) -> None:
    family, pipe = families.FAMILIES[name], families.build(name)
    folder = tmp_path / "model"
    shutil.copytree(family_folder(name), folder)
    pipe.scheduler = _deterministic(pipe.scheduler)
    pipe.scheduler.save_pretrained(folder / "scheduler")
    # A size has even Stable Diffusion called as a whole.
    conditions = families.conditions(family, tmp_path)
    worker = _worker(folder, conditions)
    assert worker.files.piped or "height" not in conditions.arguments
    own = own_schedule(worker.files, STEPS)
    assert own.schedule is not None, own.note
    made = _images(worker, own.schedule)
    assert worker.calls == 2 * STEPS
    noise = starting_noise(0, 0, 2, worker.shape)
    expected = families.run(family, pipe, STEPS, latents=noise)
    if family.output == "frames":
        expected = np.stack([video[i % len(video)] for i, video in enumerate(expected)])
    np.testing.assert_allclose((made.permute(0, 2, 3, 1) + 1) / 2, expected, atol=2e-4)


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("name", ["sd", "ldm"])
def test_the_executor_alone_and_the_whole_pipeline_make_the_same_images(
    name: str, families: Any, family_folder: Folder, tmp_path: Path
) -> None:
    whole = families.conditions(families.FAMILIES[name], tmp_path)
    loading = Loading(enable=("attention-slicing",)) if name == "ldm" else Loading()
    one = _worker(family_folder(name), whole.model_copy(update={"call": ()}))
    other = _worker(family_folder(name), whole, loading=loading)
    assert (one.files.piped, other.files.piped) == (False, True)
    schedule = parse_schedule("unipc-2-bh2/karras-zero@3", one.files.noise)
    torch.testing.assert_close(_images(one, schedule), _images(other, schedule), atol=2e-5, rtol=0)


@pytest.mark.usefixtures("unlogged")
def test_images_depend_on_their_index_alone(families: Any, family_folder: Folder, tmp_path: Path) -> None:
    worker = _worker(family_folder("sdxl"), families.conditions(families.FAMILIES["sdxl"], tmp_path))
    schedule = parse_schedule("ddim/uniform-t@2", worker.files.noise)
    made = _images(worker, schedule, 3)
    alone = worker.render(as_point(schedule), 0, 2, 1)
    torch.testing.assert_close(made[2:], alone, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("unlogged")
def test_what_a_call_is_given_acts_or_is_refused(families: Any, family_folder: Folder, tmp_path: Path) -> None:
    folder, asked = family_folder("sdxl"), Conditions(prompts="a red cat")
    larger = asked.model_copy(update={"height": 24, "width": 24})
    worker = _worker(folder, larger)
    schedule = parse_schedule("ddim/uniform-t@1", worker.files.noise)
    assert _images(worker, schedule, 1).shape == (1, 3, 24, 24)
    assert larger.hash != asked.hash
    with pytest.raises(ConfigurationError, match=r"takes no 'heigth': choose from .*height"):
        _worker(folder, asked.model_copy(update={"call": ("heigth=24",)}))
    with pytest.raises(ConfigurationError, match="needs prompts"):
        _worker(folder, Conditions())
    with pytest.raises(FewstepError, match=r"guidance 0\.5: pipelines guide from 1 on"):
        _images(_worker(folder, asked.model_copy(update={"guidance": 0.5})), schedule, 1)
    with pytest.raises(ConfigurationError, match="takes no 'image'"):
        _worker(family_folder("ddpm"), Conditions(call=("image=x.png",)))
    with pytest.raises(ConfigurationError, match="image is an argument of a pipeline's call"):
        _worker(ZOO / "fashion-lfm", Conditions(call=("image=x.png",)))


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize(
    ("name", "words"),
    [("kandinsky", "needs image_embeds"), ("controlnet", "image must be passed.*; give what it lacks as --call")],
)
def test_a_pipeline_that_lacks_an_argument_names_it(name: str, words: str, family_folder: Folder) -> None:
    folder = family_folder(name)
    conditions = Conditions(prompts="a red cat") if find_model(str(folder)).text else Conditions()
    with pytest.raises(ConfigurationError, match=words):
        _worker(folder, conditions)


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_half_precision_model_is_another_one_near_the_first(name: str, family_folder: Folder) -> None:
    folder, asked = family_folder(name), Conditions(prompts="a red cat")
    exact, half = _worker(folder, asked), _worker(folder, asked, loading=Loading(dtype="bfloat16"))
    assert exact.files.hash != half.files.hash
    schedule = parse_schedule("ddim/uniform-t@2", exact.files.noise)
    first, second = (_images(worker, schedule, 1) for worker in (exact, half))
    assert second.dtype == torch.float32
    assert 0 < (first - second).abs().mean() < 0.05


def test_loading_that_only_pipelines_know_is_refused_without_one(family_folder: Folder) -> None:
    folder = family_folder("sd")
    assert find_model(str(folder), loading=Loading(enable=("vae-slicing",))).piped
    with pytest.raises(ModelError, match="offload and enable are for pipelines"):
        find_model(str(folder / "unet"), loading=Loading(offload="model"))
    with pytest.raises(ModelError, match=r"has no enable_vae_slices: choose from .*vae_slicing"):
        _worker(folder, Conditions(prompts="a cat"), loading=Loading(enable=("vae-slices",)))


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("name", ["sd_img2img", "sd_inpaint_plain"])
def test_a_pipeline_that_begins_with_an_image_begins_at_its_strength(
    name: str, families: Any, family_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, pipe = families.FAMILIES[name], families.build(name)
    folder, steps, strength = tmp_path / "model", 5, 0.8
    shutil.copytree(family_folder(name), folder)
    pipe.scheduler = _deterministic(pipe.scheduler)
    pipe.scheduler.save_pretrained(folder / "scheduler")
    drawn: list[torch.Tensor] = []
    add_noise = DDIMScheduler.add_noise

    def heard(self: Any, original: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        drawn.append(noise)
        return add_noise(self, original, noise, times)

    monkeypatch.setattr(DDIMScheduler, "add_noise", heard)
    draws = [torch.Generator().manual_seed(i) for i in range(2)]
    expected = families.run(family, pipe, steps, generator=draws, strength=strength)
    denoiser = _worker(folder, families.conditions(family, tmp_path, strength=strength)).exact
    noise = denoiser.files.noise
    # Trailing times of five steps, the first of which is left out.
    lambdas = (*(noise.lambda_at(t) for t in (799.0, 599.0, 399.0, 199.0)), noise.lambda_end)
    assert noise.lambda_start == pytest.approx(lambdas[0], abs=1e-2)
    schedule = SolverSchedule.build(lambdas=lambdas, steps=(Step(),) * 4)
    program = Program(compile_schedule(schedule, noise, denoiser.files.prediction_type))
    begun = denoiser.begin(drawn[0], range(2), lambdas[0])
    made = denoiser.finish(program(denoiser.on(range(2)), begun), range(2))
    assert denoiser.calls == 2 * 4
    np.testing.assert_allclose((made.permute(0, 2, 3, 1) + 1) / 2, expected, atol=2e-4)


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize(("name", "begins_later"), [("sd_img2img", True), ("sd_inpaint", False)])
def test_a_first_step_that_guesses_the_image_is_left_out_where_there_is_one(
    name: str, begins_later: bool, families: Any, family_folder: Folder, tmp_path: Path
) -> None:
    # Inpainting at full strength begins with noise alone.
    denoiser = _worker(family_folder(name), families.conditions(families.FAMILIES[name], tmp_path)).exact
    plain = parse_schedule("ddim/uniform-t@3", denoiser.files.noise)
    analytic = plain.model_copy(update={"first_call": "zero_x0"})
    assert denoiser.fitted(plain) == plain
    fitted = denoiser.fitted(analytic)
    assert (fitted.first_call == "model") == begins_later
    assert fitted.lambdas[0] == analytic.lambdas[int(begins_later)]
    assert fitted.nfe == analytic.nfe


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("sd_inpaint_plain", 1.0),
        ("sd_inpaint_plain", 0.6),
        ("sd_inpaint", 0.6),
        ("sd_img2img", 0.6),
        ("StableDiffusion3Img2ImgPipeline", 0.6),
        ("FluxInpaintPipeline", 0.6),
    ],
)
def test_what_begins_with_an_image_is_made_again_by_the_pipeline_itself(
    name: str, strength: float, families: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the strength that it was found at, by all of its calls; with told times that are moved, too."""
    family, pipe = _that_begins_with_an_image(name, families)
    pipe.save_pretrained(tmp_path / "model")
    worker = _worker(tmp_path / "model", families.conditions(family, tmp_path, strength=strength))
    plain = worker.exact.fitted(parse_schedule("dpmpp-2m/uniform-t@3", worker.files.noise))
    moved = Corrections(points=((0.01,), (0.01, 0.02), (0.01, 0.02, 0.03)), shifts=(0.02, -0.03, 0.01))
    schedule = plain.model_copy(update={"corrections": moved})
    noise, calls = starting_noise(0, 0, 2, worker.shape), []
    stock, pipe.scheduler = pipe.scheduler, FewStepScheduler.from_schedules(schedule, pipe.scheduler)
    module = sys.modules[type(pipe).__module__]
    own = module.randn_tensor
    drawn = noise.unflatten(1, (4, 4)).unflatten(3, (4, 2, 2)).permute(0, 3, 1, 4, 2, 5) if noise.ndim == 3 else noise
    # Drawn where the pipeline draws it, for what it draws later.
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: own(*a, **k).copy_(drawn.reshape(2, 4, 8, 8)))
    getattr(pipe, family.network).register_forward_hook(lambda *_: calls.append(1))
    draws = [torch.Generator().manual_seed(i) for i in range(2)]
    latents = {"latents": noise.clone()} if strength == 1 else {}
    theirs = families.run(family, pipe, 3, strength=strength, generator=draws, **latents)
    assert len(calls) == 3
    np.testing.assert_allclose((_images(worker, schedule).permute(0, 2, 3, 1) + 1) / 2, theirs, atol=2e-6)
    if strength < 1:
        assert worker.files.noise.lambda_start == pytest.approx(lambda_of_strength(from_diffusers(stock), 0.6))
        pipe.scheduler.set_timesteps(3)
        with pytest.raises(ScheduleError, match="call it with the strength that"):
            pipe.scheduler.scale_model_input(noise, pipe.scheduler.timesteps[0])


def _that_begins_with_an_image(name: str, families: Any) -> tuple[Any, Any]:
    """A family by its name, or another pipeline of the parts of one."""
    if name in families.FAMILIES:
        return families.FAMILIES[name], families.build(name)
    base = "flux" if name.startswith("Flux") else "sd3"
    made, pipe = getattr(diffusers, name), families.build(base)
    asked = families.FAMILIES["sd_inpaint_plain" if "Inpaint" in name else "sd_img2img"].arguments()
    asked |= {"height": 16, "width": 16, "max_sequence_length": families.PROMPT_LENGTH}
    parts = {k: v for k, v in pipe.components.items() if k in inspect.signature(made.__init__).parameters}
    if base == "flux":
        parts["scheduler"] = FlowMatchEulerDiscreteScheduler(shift=3.0)
    network = families.FAMILIES[base].network
    return families.Family(name, lambda: None, lambda: asked, network, None, True), made(**parts)


@pytest.mark.parametrize(("base", "grid"), [("sd", "trailing"), ("sd", "own"), ("sd3", "own"), ("sd3", "uniform-t")])
def test_grids_begin_where_the_image_gets_its_noise(base: str, grid: str, families: Any) -> None:
    """A stock scheduler's are those that it makes for as many more steps as its pipeline then leaves out."""
    stock = families.build(base).scheduler
    noise = from_diffusers(stock)
    begin = lambda_of_strength(noise, 0.6)
    assert isinstance(noise, DiscreteVP | FlowMatching)
    noise.start_at(begin, 0.6)
    schedule = preset_on_grid(f"ddim/{grid}", noise, 3)
    assert schedule.nfe == 3
    called = schedule.lambdas[int(schedule.first_call != "model")]
    assert called >= begin - 1e-3
    compile_schedule(schedule, noise, prediction_type(config_of(stock)))
    if grid in ("own", "trailing"):
        times = parse_schedule(f"ddim/{grid}@5", from_diffusers(stock)).lambdas
        assert schedule.lambdas[-3:] == pytest.approx(times[-3:])


def test_images_for_a_call_are_those_that_are_read_everywhere(tmp_path: Path) -> None:
    """Of any format and depth, in folders of folders; what has no one meaning is refused."""
    given = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    (tmp_path / "deep").mkdir()
    Image.fromarray(given.astype(np.uint16) * 257).save(tmp_path / "deep" / "a.tif")
    Image.fromarray(given).save(tmp_path / "b.pgm")
    (tmp_path / "._b.png").write_bytes(b"\x00\x05\x16\x07" + bytes(8))
    asked = Conditions(prompts="a cat", call=(f"image={tmp_path}", f"mask_image={tmp_path / 'deep' / 'a.tif'}"))
    assert set(asked.shown_files) == {"image", "mask_image"}
    for index in range(3):
        np.testing.assert_array_equal(np.asarray(shown_image(tmp_path, index)), np.repeat(given[:, :, None], 3, 2))
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "clear.png")
    with pytest.raises(DataError, match=r"clear\.png"):
        shown_image(tmp_path / "clear.png", 0)
