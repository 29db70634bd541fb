"""From what the network makes to images and back: nothing to do for pixels, the autoencoder for latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.networks import frozen, load_part


def load_decoder(files: ModelFiles, device: str) -> Callable[[Tensor], Tensor]:
    """A function from latents (B, c, h, w) to images (B, C, H, W) in about [-1, 1]; ModelError if it does not load."""
    if files.vae_config is None:
        return lambda images: images
    from diffusers import AutoencoderKL

    vae = frozen(load_part(AutoencoderKL, files.root / "vae", torch_dtype=torch.float32), device)
    scale, shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)

    def decode(latents: Tensor) -> Tensor:
        images: Tensor = vae.decode(latents / scale + shift, return_dict=False)[0]
        return images

    return decode


def load_encoder(files: ModelFiles, device: str) -> Callable[[Tensor], Tensor]:
    """A function from images (B, C, H, W) in [-1, 1] to scaled latents (B, c, h, w), the means of their posteriors."""
    if files.vae_config is None:
        return lambda images: images
    from diffusers import AutoencoderKL

    vae = frozen(load_part(AutoencoderKL, files.root / "vae", torch_dtype=torch.float32), device)
    return encoder_of(vae)


def encoder_of(vae: Any) -> Callable[[Tensor], Tensor]:
    """The same for a loaded autoencoder."""
    scale, shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)

    def encode(images: Tensor) -> Tensor:
        mean: Tensor = vae.encode(images).latent_dist.mean
        return (mean - shift) * scale

    return encode
