"""Latent flow matching: autoencoder, latents that are encoded once, velocity, both networks, and their entry."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from pydantic import ValidationError
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.pipeline import cli
from fewstep.search_spaces.schedule.presets import preset
from fewstep.tasks.data import Dataset, load_dataset
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.decoder import load_decoder
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ZOO, find_model
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.sampling.scheduler import FewStepScheduler
from fewstep.tasks.training.autoencoder import (
    build_autoencoder,
    check_latents,
    encode_once,
    reconstruct,
    train_autoencoder,
)
from fewstep.tasks.training.diffusion import draw_batch, train_network
from fewstep.tasks.training.entry import train_entry
from fewstep.tasks.training.examples import Latents, Pixels
from fewstep.tasks.training.networks import build_network
from fewstep.tasks.training.objectives import objective_of
from fewstep.tasks.training.recipe import AutoencoderRecipe, TrainingRecipe
from fewstep.tasks.work import Subject, Task, WorkerSettings
from fewstep.tasks.worker import Worker

UNET = {
    "sample_size": 4,
    "in_channels": 2,
    "out_channels": 2,
    "layers_per_block": 1,
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 2,
    "attention_head_dim": 4,
    "num_class_embeds": 11,
}
TRANSFORMER = {
    "sample_size": 4,
    "patch_size": 1,
    "in_channels": 2,
    "out_channels": 2,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_embeds_ada_norm": 10,
}
KINDS = ("unet", "transformer")
VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 2,
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
}


def _autoencoder(**changes: object) -> AutoencoderRecipe:
    return AutoencoderRecipe.model_validate({"vae": VAE, "steps": 20, "batch": 16, "warmup": 5} | changes)


def _tiny(kind: str = "unet", **changes: object) -> TrainingRecipe:
    fields = {
        "name": "tiny-lfm",
        "dataset": "digits",
        kind: UNET if kind == "unet" else TRANSFORMER,
        "autoencoder": _autoencoder(),
        "objective": "flow",
        "steps": 20,
        "batch": 16,
        "warmup": 5,
        "label_dropout": 0.3,
        "features_of": "digits-ddpm",
    }
    return TrainingRecipe.model_validate(fields | changes)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def images(digits: Dataset) -> Tensor:
    return torch.from_numpy(digits.images)


@pytest.fixture(scope="module")
def vae() -> Any:
    return build_autoencoder(_autoencoder()).eval().requires_grad_(False)


class _PowerCutError(Exception):
    pass


def _cut(*_: object) -> None:
    raise _PowerCutError


def _same(a: Any, b: Any) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_killed_and_resumed_autoencoder_equals_an_uninterrupted_one(digits: Dataset, tmp_path: Path) -> None:
    recipe = _autoencoder()
    whole = train_autoencoder(recipe, digits, tmp_path / "whole", every=8)
    for _ in range(2):
        with pytest.raises(_PowerCutError):
            train_autoencoder(recipe, digits, tmp_path / "cut", every=8, progress=_cut)
    assert _same(train_autoencoder(recipe, digits, tmp_path / "cut", every=8), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_and_resumed_flow_equals_an_uninterrupted_one(
    kind: str, digits: Dataset, images: Tensor, vae: Any, tmp_path: Path
) -> None:
    recipe = _tiny(kind, flip=True)
    labels = torch.from_numpy(digits.labels)
    latents = encode_once(vae, images, mirrors=True)
    whole, *_ = train_network(recipe, latents, labels, tmp_path / "whole", every=8)
    torch.rand(7)  # Whatever else draws from the global generator meanwhile.
    for _ in range(2):
        with pytest.raises(_PowerCutError):
            train_network(recipe, latents, labels, tmp_path / "cut", every=8, progress=_cut)
    torch.rand(7)
    resumed, *_ = train_network(recipe, encode_once(vae, images, mirrors=True), labels, tmp_path / "cut", every=8)
    assert _same(resumed, whole)


def test_a_flow_is_not_resumed_on_the_latents_of_another_autoencoder(
    digits: Dataset, images: Tensor, vae: Any, tmp_path: Path
) -> None:
    labels = torch.from_numpy(digits.labels)
    train_network(_tiny(), encode_once(vae, images), labels, tmp_path)
    other = build_autoencoder(_autoencoder(seed=1)).eval()
    with pytest.raises(ConfigurationError, match="another autoencoder"):
        train_network(_tiny(), encode_once(other, images), labels, tmp_path)


def test_the_autoencoder_learns(digits: Dataset, images: Tensor, tmp_path: Path) -> None:
    losses: list[float] = []
    recipe = _autoencoder(steps=90, batch=32, learning_rate=5e-3)
    trained = train_autoencoder(recipe, digits, tmp_path, every=30, progress=lambda s, n, loss: losses.append(loss))
    assert losses[2] < losses[1] < losses[0]
    back = reconstruct(trained, images[:600])
    assert back.shape == images[:600].shape
    assert float(back.abs().max()) <= 1
    # Better than the best that knows nothing of the image.
    assert (back - images[:600]).square().mean() < (images[:600] - images[:600].mean(0)).square().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_flow_learns(kind: str, digits: Dataset, images: Tensor, tmp_path: Path) -> None:
    losses: list[float] = []
    recipe = _tiny(kind, steps=120, batch=32, learning_rate=5e-3)
    # What an autoencoder could make of them: an untrained one's latents hold little but noise.
    mean = torch.nn.functional.avg_pool2d(images, 2).repeat(1, 2, 1, 1)
    latents, labels = Latents(mean, torch.full_like(mean, 0.05), 1.5), torch.from_numpy(digits.labels)
    train_network(recipe, latents, labels, tmp_path, every=40, progress=lambda s, n, loss: losses.append(loss))
    assert losses[2] < losses[1] < losses[0]


def test_scaled_latents_have_unit_variance_and_the_saved_config_says_by_what(
    images: Tensor, vae: Any, tmp_path: Path
) -> None:
    latents = encode_once(vae, images)
    drawn = torch.cat([latents.draw(torch.arange(len(images)), None, torch.Generator().manual_seed(s)) for s in (0, 1)])
    assert float(drawn.var()) == pytest.approx(1, abs=0.01)
    vae.save_pretrained(str(tmp_path))
    loaded = AutoencoderKL.from_pretrained(str(tmp_path))
    assert loaded.config.scaling_factor == pytest.approx(latents.scale)
    # In diffusers' own words.
    with torch.no_grad():
        theirs = loaded.encode(images).latent_dist.sample(torch.Generator().manual_seed(0))
    assert float((theirs * loaded.config.scaling_factor).var()) == pytest.approx(1, abs=0.02)


def test_kept_latents_are_draws_of_the_posterior_that_encoding_at_every_step_gives(images: Tensor, vae: Any) -> None:
    """The same posterior for images and mirrored images, and the same samples under the same noise."""
    latents = encode_once(vae, images, mirrors=True)
    assert len(latents) == len(images)
    index = torch.tensor([3, 999, 1796, 3])
    mirrored = torch.tensor([False, True, True, True])
    drawn = latents.draw(index, mirrored, torch.Generator().manual_seed(5))
    x = torch.where(mirrored.view(-1, 1, 1, 1), images[index].flip(-1), images[index])
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
    sampled = posterior.sample(torch.Generator().manual_seed(5))
    torch.testing.assert_close(drawn, sampled * vae.config.scaling_factor, rtol=0, atol=1e-5)
    # New noise at every draw; over many, the posterior's mean and spread.
    rng = torch.Generator().manual_seed(6)
    many = torch.stack([latents.draw(index, mirrored, rng) for _ in range(4000)])
    mean, std = posterior.mean * latents.scale, posterior.std * latents.scale
    assert ((many.mean(0) - mean).abs() < 5 * std / math.sqrt(4000)).all()
    assert ((many.std(0) / std - 1).abs() < 5 / math.sqrt(2 * 4000)).all()


def test_the_velocity_leads_from_every_point_to_the_data_and_to_the_noise() -> None:
    objective = objective_of(_tiny())
    x0 = torch.randn(4096, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    lesson = objective.draw(x0, torch.Generator().manual_seed(0), "cpu")
    t = (lesson.time / 1000).view(-1, 1, 1, 1)
    assert 0 <= float(t.min()) < 0.01 < 0.99 < float(t.max()) < 1
    assert float(t.mean()) == pytest.approx(0.5, abs=0.02)
    # 1e-5 of the noise is left at t = 0.
    assert torch.allclose(lesson.shown - t * lesson.answer, x0, atol=1e-4)
    noise = lesson.shown + (1 - t) * lesson.answer
    assert float(noise.var()) == pytest.approx(1, abs=0.02)
    assert abs(float((noise * x0).mean())) < 0.01
    # What the samplers take it for.
    family = FlowMatching(objective.scheduler.config.num_train_timesteps)
    for i in range(3):
        means = family.output_map("flow_prediction", family.lambda_at(float(lesson.time[i])))
        x0_said = means.x0_x * lesson.shown[i] + means.x0_o * lesson.answer[i]
        assert torch.allclose(x0_said, x0[i], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_dropped_as_often_as_asked_and_never_changed(kind: str, digits: Dataset, images: Tensor) -> None:
    recipe = _tiny(kind, batch=4000)
    labels = torch.from_numpy(digits.labels)
    _, x0, told = draw_batch(recipe, Pixels(images), labels, torch.Generator().manual_seed(0))
    assert told is not None
    assert recipe.null_label == 10
    assert float((told == 10).float().mean()) == pytest.approx(0.3, abs=0.03)
    index = torch.randint(0, len(images), (4000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x0, images[index])
    kept = told != 10
    assert torch.equal(told[kept], labels[index][kept])
    kept_all = recipe.model_copy(update={"label_dropout": 0.0})
    _, _, never = draw_batch(kept_all, Pixels(images), labels, torch.Generator())
    assert never is not None
    assert never.max() < 10
    _, _, without = draw_batch(
        recipe.model_copy(update={"label_dropout": None}), Pixels(images), labels, torch.Generator()
    )
    if kind == "unet":
        assert without is None
    else:
        assert without is not None
        assert without.eq(10).all()


def test_a_transformer_starts_at_zero_and_draws_nothing_by_itself() -> None:
    network = build_network(_tiny("transformer")).train()
    x, t = torch.randn(6, 2, 4, 4), torch.rand(6) * 1000
    assert not network(x, t, torch.arange(6)).sample.any()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        first, second = (network(x, t, torch.arange(6)).sample for _ in range(2))
    assert first.any()
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_entry_of_latents_is_sampled_and_evaluated_by_its_path(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny-lfm"
    recipe = _tiny(kind)
    stages: list[str] = []

    def cut(stage: str, step: int, total: int, loss: float) -> None:
        stages.append(stage)
        raise _PowerCutError

    for _ in range(2):
        with pytest.raises(_PowerCutError):
            train_entry(recipe, out, tmp_path / "checkpoints", progress=cut)
    assert stages == ["autoencoder", "network"]
    assert not (out / "model_index.json").exists()
    figures = train_entry(recipe, out, tmp_path / "checkpoints")
    files = find_model(str(out))
    assert (files.shape, files.channels, files.size, files.null_label) == ((2, 4, 4), 1, 8, 10)
    assert files.prediction_type == "flow_prediction"
    assert {p.name for p in out.iterdir()} == {
        *(kind, "vae", "scheduler", "classifier", "reference.npz"),
        *("recipe.json", "card.json", "README.md", "model_index.json"),
        *(("fewstep.json",) if kind == "unet" else ()),
    }
    index = json.loads((out / "model_index.json").read_text())
    network_class = "UNet2DModel" if kind == "unet" else "DiTTransformer2DModel"
    assert index[kind] == ["diffusers", network_class]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert TrainingRecipe.model_validate_json((out / "recipe.json").read_text()).autoencoder is not None
    assert f"{figures['autoencoder_parameters']:,}" in (out / "README.md").read_text()
    assert figures["reconstruction_fid"] >= 0
    weights = (out / "classifier" / "model.safetensors").read_bytes()
    assert weights == (ZOO / "digits-ddpm" / "classifier" / "model.safetensors").read_bytes()
    # The kill changed nothing.
    train_entry(recipe, tmp_path / "twin", tmp_path / "other")
    assert find_model(str(tmp_path / "twin")).hash == files.hash

    worker = Worker(WorkerSettings(Subject(str(out))))
    noise = files.noise
    lambdas = [*np.linspace(noise.lambda_start, noise.lambda_end, 4), math.inf]
    result = worker.run(Task("", "images", preset("ddim", lambdas).to_json(), 0, 0, 6))
    assert not result.error
    assert result.images is not None
    assert result.images.shape == (6, 1, 8, 8)
    assert np.isfinite(result.images).all()

    command = f"evaluate --model {out} --schedule ddim/uniform-lambda-zero@3 --images 250 --labels balanced"
    arguments = [*command.split(), "--guidance", "1.5", "--out", str(tmp_path / "kept"), "--json"]
    monkeypatch.setattr(sys, "argv", ["fewstep", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["value"] > 0


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_diffusers_own_parts_make_the_same_images_of_an_entry(kind: str, tmp_path: Path) -> None:
    """Euler steps of the saved scheduler, the saved network and the saved autoencoder against ours."""
    out = tmp_path / "tiny-lfm"
    with torch.inference_mode(False):
        train_entry(_tiny(kind), out, tmp_path / "checkpoints")
    loader: Any = UNet2DModel if kind == "unet" else DiTTransformer2DModel
    network = loader.from_pretrained(str(out), subfolder=kind, torch_dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(str(out), subfolder="vae", torch_dtype=torch.float32).eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(str(out), subfolder="scheduler")
    scheduler.set_timesteps(4)
    x = starting_noise(0, 0, 3, (2, 4, 4))
    for t in scheduler.timesteps:
        velocity = network(x, t.expand(3), torch.full((3,), 10)).sample
        x = scheduler.step(velocity, t, x).prev_sample
    theirs = vae.decode(x / vae.config.scaling_factor).sample.clamp(-1, 1)

    worker = Worker(WorkerSettings(Subject(str(out))))
    lambdas = [worker.files.noise.lambda_at(float(t)) for t in scheduler.timesteps]
    ours = worker.render(preset("ddim", [*lambdas, math.inf]).to_json(), 0, 0, 3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_diffusers_pipeline_of_transformers_samples_an_entry_with_our_scheduler(tmp_path: Path) -> None:
    out = tmp_path / "tiny-lfm"
    with torch.inference_mode(False):
        train_entry(_tiny("transformer"), out, tmp_path / "checkpoints")
    pipe = DiffusionPipeline.from_pretrained(str(out), torch_dtype=torch.float32)
    assert isinstance(pipe, DiTPipeline)
    schedule = preset("ddim", [-math.inf, -1.0, 1.5, math.inf])
    pipe.scheduler = FewStepScheduler.from_schedules(schedule, pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"guidance_scale": 1.0, "num_inference_steps": 3, "output_type": "pt"}
    theirs = pipe([0, 1, 2], generator=torch.Generator().manual_seed(0), **arguments).images
    files = find_model(str(out))
    x = torch.randn(3, *files.shape, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(files, conditions=Conditions(labels="balanced"))
    program = Program(compile_schedule(schedule, files.noise, files.prediction_type), "cpu")
    ours = load_decoder(files, "cpu")(program(denoiser.on(range(3)), x))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), torch.as_tensor(theirs), rtol=0, atol=1e-5)


def test_an_entry_works_on_the_very_latents_of_another(tmp_path: Path) -> None:
    first, second, few = tmp_path / "first", tmp_path / "second", {"steps": 2, "classifier_steps": 2}
    train_entry(_tiny(autoencoder=_autoencoder(steps=2), **few), first, tmp_path / "a")
    recipe = _tiny("transformer", autoencoder_of=str(first), **few)
    assert not recipe.trains_autoencoder
    figures = train_entry(recipe, second, tmp_path / "b")
    assert not (tmp_path / "b" / "autoencoder").exists()
    weights = [(place / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() for place in (first, second)]
    assert weights[0] == weights[1]
    factors = [find_model(str(place)).vae_config["scaling_factor"] for place in (first, second)]
    assert factors[0] == factors[1]
    assert figures["autoencoder_of"].endswith(f"({find_model(str(first)).hash})")
    with pytest.raises(ConfigurationError, match="starts from digits-ddpm, which"):
        train_entry(_tiny(autoencoder_of="digits-ddpm"), tmp_path / "c", tmp_path / "d")
    with pytest.raises(ValidationError, match="autoencoder_of"):
        _tiny(autoencoder_of="fashion-lfm", starts_from="fashion-lfm")


def test_networks_that_do_not_fit_are_refused_before_anything_is_trained(digits: Dataset) -> None:
    check_latents(_tiny(), digits)
    with pytest.raises(ConfigurationError, match="the network takes 7x7"):
        check_latents(_tiny(unet=UNET | {"sample_size": 7}), digits)
    deep = {k: v * 3 if isinstance(v, tuple) and k.endswith("types") else v for k, v in VAE.items()}
    deep |= {"block_out_channels": (4, 4, 4, 4, 8, 8)}
    with pytest.raises(ConfigurationError, match="the autoencoder"):
        check_latents(_tiny(autoencoder=_autoencoder(vae=deep)), digits)
    for changes in ({"transformer": TRANSFORMER}, {"unet": None}, {"unet": UNET | {"in_channels": 4}}):
        with pytest.raises(ValidationError, match=r"either|latent_channels"):
            _tiny(**changes)
    with pytest.raises(ValidationError, match="num_class_embeds"):
        _tiny(unet={k: v for k, v in UNET.items() if k != "num_class_embeds"})


def test_a_model_of_pixels_has_no_autoencoder_to_shorten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = f"train digits-ddpm --autoencoder-steps 5 --out {tmp_path / 'out'} --checkpoints {tmp_path / 'kept'}"
    monkeypatch.setattr(sys, "argv", ["fewstep", *command.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code
    assert "--autoencoder-steps" in capsys.readouterr().err


def test_latents_without_flips_are_as_many_as_the_images() -> None:
    latents = Latents(torch.zeros(5, 1, 2, 2), torch.ones(5, 1, 2, 2), 3.0)
    assert len(latents) == 5
    drawn = latents.draw(torch.tensor([0, 4]), None, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, 3 * torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
