"""From what the network makes to images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from fewstep.errors import ModelError
from fewstep.tasks.models.decoder import load_decoder
from fewstep.tasks.models.files import find_model


def test_pixels_stay_as_they_are(tiny_ddpm: Path) -> None:
    images = torch.randn(2, 3, 8, 8)
    assert load_decoder(find_model(str(tiny_ddpm)), "cpu")(images) is images


@torch.inference_mode()
def test_latents_are_decoded_at_the_autoencoders_scale(tiny_stable_diffusion: Path) -> None:
    files = find_model(str(tiny_stable_diffusion))
    vae = AutoencoderKL.from_pretrained(str(tiny_stable_diffusion / "vae")).eval()
    latents = torch.randn(2, *files.shape, generator=torch.Generator().manual_seed(0))
    images = load_decoder(files, "cpu")(latents)
    assert images.shape == (2, files.channels, files.size, files.size)
    torch.testing.assert_close(images, vae.decode(latents / vae.config.scaling_factor).sample, rtol=0, atol=1e-6)


def test_an_autoencoder_without_weights_is_named(tiny_stable_diffusion: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_stable_diffusion, copy)
    for path in (copy / "vae").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ModelError, match=r"vae holds no weights"):
        load_decoder(find_model(str(copy)), "cpu")
