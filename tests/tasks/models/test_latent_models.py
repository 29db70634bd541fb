"""Class-conditional models of latents: a transformer or a UNet with an autoencoder, loaded by path."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from fewstep.errors import ConfigurationError, ModelError
from fewstep.search_spaces.schedule.presets import preset
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.decoder import load_decoder
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

CLASSES = 5


def _vae() -> Any:
    """Three levels: latents 4x4 of 16x16 images. Its `sample_size` says something else, as it may."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=2,
        sample_size=64,
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        scaling_factor=0.7,
    )


def _dit(**changes: Any) -> Any:
    fields = {
        "sample_size": 4,
        "patch_size": 2,
        "in_channels": 2,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_embeds_ada_norm": CLASSES,
    }
    return DiTTransformer2DModel(**(fields | changes))


def _unet() -> Any:
    return UNet2DModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        norm_num_groups=2,
        attention_head_dim=4,
        num_class_embeds=CLASSES + 1,
    )


def _save(folder: Path, kind: str, network: Any, scheduler: Any) -> Path:
    network.save_pretrained(str(folder / kind))
    _vae().save_pretrained(str(folder / "vae"))
    scheduler.save_pretrained(str(folder / "scheduler"))
    if kind == "unet":
        (folder / "fewstep.json").write_text(json.dumps({"null_label": CLASSES}))
    return folder


@pytest.fixture(scope="module", params=["unet", "transformer"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _unet() if request.param == "unet" else _dit()
        folder = tmp_path_factory.mktemp("latent")
        return _save(folder, request.param, network, FlowMatchEulerDiscreteScheduler())


def _dit_folder(tmp_path: Path, **changes: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _save(tmp_path / "dit", "transformer", _dit(**changes), DDIMScheduler())


def test_it_is_found_with_its_labels_and_the_size_of_its_images(model: Path) -> None:
    files = find_model(str(model))
    assert (files.shape, files.channels, files.size) == ((2, 4, 4), 1, 16)
    assert (files.null_label, files.text, files.prediction_type) == (CLASSES, False, "flow_prediction")
    assert files.skips == (0 if files.transformer else 2)
    images = load_decoder(files, "cpu")(torch.zeros(2, *files.shape))
    assert images.shape == (2, files.channels, files.size, files.size)


def test_it_samples_finite_images_for_labels_and_guidance(model: Path) -> None:
    asked = Conditions(labels="balanced", guidance=1.5)
    worker = Worker(WorkerSettings(Subject(str(model), conditions=asked)))
    noise = worker.files.noise
    lambdas = [noise.lambda_start, 0.0, noise.lambda_end, math.inf]
    schedule = preset("ddim", lambdas).to_json()
    images = worker.render(schedule, 0, 0, 6)
    assert images.shape == (6, 1, 16, 16)
    assert torch.isfinite(images).all()
    assert worker.calls == 6 * 3
    # Image i's label depends on i alone.
    torch.testing.assert_close(worker.render(schedule, 0, 4, 2), images[4:], rtol=0, atol=1e-5)
    plain = Worker(WorkerSettings(Subject(str(model))))
    assert not torch.allclose(plain.render(schedule, 0, 0, 6), images)


@torch.inference_mode()
def test_the_velocity_is_guided_from_the_null_label(model: Path) -> None:
    files = find_model(str(model))
    loader: Any = DiTTransformer2DModel if files.transformer else UNet2DModel
    network = loader.from_pretrained(str(files.unet)).eval()
    x = torch.randn(3, *files.shape, generator=torch.Generator().manual_seed(0))
    time = torch.full((3,), 512.25)
    without = network(x, time, torch.full((3,), CLASSES)).sample
    asked = network(x, time, torch.tensor([2, 3, 4])).sample
    ours = Denoiser(files, conditions=Conditions(labels="balanced", guidance=1.5)).on([2, 3, 4])(x, 512.25)
    torch.testing.assert_close(ours, without + 1.5 * (asked - without), rtol=0, atol=1e-5)
    assert not torch.allclose(without, asked)
    torch.testing.assert_close(Denoiser(files)(x, 512.25), without, rtol=0, atol=1e-5)


def test_labels_the_model_does_not_know_are_refused(model: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"below {CLASSES}"):
        Denoiser(find_model(str(model)), conditions=Conditions(labels=str(CLASSES)))


@torch.inference_mode()
def test_the_variance_that_a_transformer_predicts_besides_is_left_out(tmp_path: Path) -> None:
    files = find_model(str(_dit_folder(tmp_path, out_channels=4)))
    x = torch.randn(3, *files.shape, generator=torch.Generator().manual_seed(0))
    both = DiTTransformer2DModel.from_pretrained(str(files.unet)).eval()(
        x, torch.full((3,), 10.0), torch.full((3,), CLASSES)
    )
    ours = Denoiser(files)(x, 10.0)
    assert ours.shape == x.shape
    torch.testing.assert_close(ours, both.sample[:, :2], rtol=0, atol=1e-6)


@torch.inference_mode()
def test_a_pipeline_of_diffusers_loads_and_makes_the_same_images(tmp_path: Path) -> None:
    """DiTPipeline without guidance: its null label is ImageNet's."""
    folder = _dit_folder(tmp_path, num_embeds_ada_norm=1000, out_channels=2)
    pipe = DiTPipeline(
        transformer=DiTTransformer2DModel.from_pretrained(str(folder), subfolder="transformer"),
        vae=AutoencoderKL.from_pretrained(str(folder), subfolder="vae"),
        scheduler=DDIMScheduler.from_pretrained(str(folder), subfolder="scheduler", clip_sample=False),
    )
    pipe.save_pretrained(str(tmp_path / "saved"))
    pipe.set_progress_bar_config(disable=True)
    files = find_model(str(tmp_path / "saved"))
    assert (files.null_label, files.size) == (1000, 16)
    generator = torch.Generator().manual_seed(0)
    theirs = pipe([7], guidance_scale=1.0, generator=generator, num_inference_steps=1, output_type="pt").images
    x = torch.randn(1, *files.shape, generator=torch.Generator().manual_seed(0))
    time = int(pipe.scheduler.timesteps[0])
    worker = Denoiser(files, conditions=Conditions(labels="7"))
    latent = pipe.scheduler.step(worker.on([0])(x, float(time)), time, x).prev_sample
    ours = (load_decoder(files, "cpu")(latent) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out_channels": 3}, "2 channels in and 3 out"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm"),
        ({"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel"),
        ({"in_channels": None}, "in_channels"),
    ],
)
def test_each_fault_of_a_transformer_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = _dit_folder(tmp_path)
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=words):
        find_model(str(folder))


def test_a_bare_transformer_with_a_scheduler_beside_it_is_a_model_of_what_it_denoises(tmp_path: Path) -> None:
    folder = _dit_folder(tmp_path)
    bare = Path(shutil.copytree(folder / "transformer", tmp_path / "bare"))
    shutil.copy(folder / "scheduler" / "scheduler_config.json", bare)
    files = find_model(str(bare))
    assert (files.shape, files.size, files.vae_config) == ((2, 4, 4), 4, None)


def test_the_hash_names_the_autoencoder_too(model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    assert find_model(str(other)).hash == find_model(str(model)).hash
    path = other / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0.5}))
    assert find_model(str(other)).hash != find_model(str(model)).hash
