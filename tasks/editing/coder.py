"""From images to what the network denoises, the other way of `tasks.models.decoder`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.networks import frozen, load_part


def load_encoder(files: ModelFiles, device: str) -> Callable[[Tensor], Tensor]:
    """A function from images (B, C, H, W) in [-1, 1] to latents (B, c, h, w), the mode of the autoencoder's posterior.

    Nothing to do for a model of pixels. ModelError where the autoencoder does not load.
    """
    if files.vae_config is None:
        return lambda images: images
    from diffusers import AutoencoderKL

    vae = frozen(load_part(AutoencoderKL, files.root / "vae", torch_dtype=torch.float32), device)
    scale, shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)

    def encode(images: Tensor) -> Tensor:
        with torch.inference_mode():
            latents: Tensor = (vae.encode(images.to(device)).latent_dist.mode() - shift) * scale
        return latents

    return encode
