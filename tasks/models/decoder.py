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
    if files.piped or files.vae_config is None:
        return lambda images: images
    vae = load_autoencoder(files, device)
    scale, shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)

    def decode(latents: Tensor) -> Tensor:
        images: Tensor = vae.decode((latents / scale + shift).to(vae.dtype), return_dict=False)[0]
        return images.to(latents.dtype)

    return decode


def load_autoencoder(files: ModelFiles, device: str) -> Any:
    """The autoencoder itself."""
    import diffusers

    assert files.vae is not None
    assert files.vae_config is not None
    kind = getattr(diffusers, str(files.vae_config.get("_class_name")))
    how = files.loading
    dtype = torch.float32 if files.vae_config.get("force_upcast") else how.torch_dtype
    return frozen(load_part(kind, files.vae, torch_dtype=dtype, **how.files), device)


def load_encoder(files: ModelFiles, device: str) -> Callable[[Tensor], Tensor]:
    """A function from images (B, C, H, W) in [-1, 1] to scaled latents (B, c, h, w).

    They are the means of an AutoencoderKL's posteriors; of a VQModel what its decoder quantises (2112.10752, 3.1).
    """
    if files.vae_config is None:
        return lambda images: images
    return encoder_of(load_autoencoder(files, device))


def encoder_of(vae: Any) -> Callable[[Tensor], Tensor]:
    """The same for a loaded autoencoder."""
    scale, shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)

    def encode(images: Tensor) -> Tensor:
        found = vae.encode(images.to(vae.dtype))
        mean: Tensor = found.latents if hasattr(found, "latents") else found.latent_dist.mean
        return ((mean - shift) * scale).to(images.dtype)

    return encode
