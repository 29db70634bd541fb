"""A model is sampled as its directory says or refused: weights that misfit, parts and inputs that are not supported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.errors import EvaluationError, ModelError
from fewstep.search_spaces.point import SchedulePoint
from fewstep.tasks.models.classifier import load_classifier
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.decoder import load_decoder
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ZOO, find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

State = dict[str, torch.Tensor]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory of the user's own: a copy of the bundled model."""
    return Path(shutil.copytree(ZOO / "digits-ddpm", tmp_path / "mine"))


@pytest.fixture
def text_model(tiny_stable_diffusion: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_stable_diffusion, tmp_path / "mine"))


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _weights(path: Path, change: Callable[[State], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def _loads(model: Path) -> None:
    """Load every network that takes part in sampling."""
    files = find_model(str(model))
    denoiser = Denoiser(files, conditions=Conditions(prompts="a cat") if files.text else None)
    denoiser.network.condition(denoiser.conditions, range(1))
    load_decoder(files, "cpu")


# -- weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
@pytest.mark.parametrize("problem", ["lack", "have besides", "misfit"])
def test_weights_that_are_not_the_configs_are_refused(part: str, name: str, problem: str, text_model: Path) -> None:
    path = text_model / part / name
    key = next(k for k, v in load_file(path).items() if v.ndim == 1)

    def change(state: State) -> None:
        if problem == "lack":
            del state[key]
        elif problem == "have besides":
            state["another.weight"] = torch.zeros(2)
        else:
            state[key] = torch.zeros(len(state[key]) + 1)

    _loads(text_model)
    _weights(path, change)
    with pytest.raises(ModelError) as caught:
        _loads(text_model)
    assert str(text_model / part) in str(caught.value)
    assert ("another.weight" if problem == "have besides" else key) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, model: Path) -> None:
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    _weights(path, lambda state: state["conv_out.bias"].fill_(value))
    with pytest.raises(ModelError, match=r"weights of conv_out.bias are not finite"):
        _loads(model)


def test_features_that_are_not_finite_are_not_images_that_diverge(model: Path) -> None:
    path = model / "classifier" / "model.safetensors"
    name = next(k for k, v in load_file(path).items() if v.is_floating_point())
    _weights(path, lambda state: state[name].fill_(float("nan")))
    with pytest.raises(ModelError, match=f"weights of {name} are not finite"):
        load_classifier(model / "classifier")


def test_a_network_that_breaks_is_not_a_schedule_that_explodes(model: Path) -> None:
    worker = Worker(WorkerSettings(Subject(str(model))))
    schedule = preset_on_grid("ddim/uniform-t", worker.files.noise, 3)
    calls = 0

    def broken(*_: object) -> None:
        nonlocal calls
        calls += 1

    def breaks(module: Any, inputs: Any, output: Any) -> Any:
        return type(output)(sample=output.sample * (float("nan") if calls == 2 else 1.0))

    module = worker.exact.network.module
    module.register_forward_pre_hook(broken)
    handle = module.register_forward_hook(breaks)
    with pytest.raises(EvaluationError, match=r"the network returned values that are not finite at call 2 \(time"):
        worker.render(SchedulePoint(schedule=schedule), 0, 0, 2)
    handle.remove()
    module.register_forward_hook(lambda m, i, output: type(output)(sample=output.sample * 1e30))
    with pytest.raises(EvaluationError, match="its steps explode"):
        worker.render(SchedulePoint(schedule=schedule), 0, 0, 2)


# -- parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["controlnet", "vqvae", "text_encoder_2", "image_encoder", "prior"])
def test_a_part_that_takes_part_in_sampling_is_used_or_refused(name: str, model: Path) -> None:
    (model / name).mkdir()
    (model / name / "config.json").write_text('{"_class_name": "SomeModel"}')
    with pytest.raises(ModelError, match=f"a {name} that a DDPMPipeline has no use for"):
        find_model(str(model))
    shutil.rmtree(model / name)
    _edit(model / "model_index.json", **{name: ["diffusers", "SomeModel"]})
    with pytest.raises(ModelError, match=f"a {name} that a DDPMPipeline has no use for"):
        find_model(str(model))
    _edit(model / "model_index.json", **{name: [None, None]})
    find_model(str(model))


def test_parts_that_only_look_at_finished_images_do_not_matter(text_model: Path) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    _edit(text_model / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    find_model(str(text_model))


@pytest.mark.parametrize(("part", "kind"), [("text_encoder", "T5EncoderModel"), ("vae", "AutoencoderTiny")])
def test_parts_of_another_class_are_left_to_the_pipeline(part: str, kind: str, text_model: Path) -> None:
    assert not find_model(str(text_model)).piped
    _edit(text_model / "model_index.json", **{part: ["transformers", kind]})
    assert find_model(str(text_model)).piped


# -- inputs and outputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time'"),
        ({"class_embed_type": "projection"}, "class_embed_type 'projection'"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type 'image_proj'"),
        ({"attention_type": "gated"}, "attention_type 'gated'"),
        ({"num_class_embeds": 5}, "num_class_embeds 5 beside prompts"),
        ({"in_channels": 9}, "9 channels in and 4 out"),
        ({"out_channels": 8}, "4 channels in and 8 out"),
        ({"sample_size": "8"}, "no side of an image"),
    ],
)
def test_inputs_that_nobody_gives_are_refused(changes: dict[str, object], words: str, text_model: Path) -> None:
    _edit(text_model / "unet" / "config.json", **changes)
    with pytest.raises(ModelError, match=words):
        find_model(str(text_model))


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_class_embeddings_of_other_kinds_are_refused(kind: str, model: Path) -> None:
    _edit(model / "unet" / "config.json", class_embed_type=kind)
    with pytest.raises(ModelError, match=f"class_embed_type '{kind}'"):
        find_model(str(model))


@pytest.mark.parametrize("key", ["latents_mean", "latents_std"])
def test_latents_that_are_scaled_by_channel_are_refused(key: str, text_model: Path) -> None:
    _edit(text_model / "vae" / "config.json", **{key: [0.0, 0.0, 0.0, 0.0]})
    with pytest.raises(ModelError, match=key):
        find_model(str(text_model))


def test_a_variant_of_the_weights_is_named(model: Path) -> None:
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(ModelError, match=r"but diffusion_pytorch_model\.fp16\.safetensors"):
        find_model(str(model))


def test_a_learned_variance_is_left_out(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    config = json.loads((ZOO / "digits-ddpm" / "unet" / "config.json").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel.from_config({**config, "out_channels": 2})
    unet.save_pretrained(str(tmp_path / "unet"))
    DDPMScheduler(variance_type="learned_range").save_pretrained(str(tmp_path / "scheduler"))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        both = unet.eval()(x, torch.tensor(500.0)).sample
        assert torch.equal(Denoiser(find_model(str(tmp_path)))(x, 500.0), both[:, :1])
    DDPMScheduler().save_pretrained(str(tmp_path / "scheduler"))
    with pytest.raises(ModelError, match="1 channels in and 2 out"):
        find_model(str(tmp_path))
