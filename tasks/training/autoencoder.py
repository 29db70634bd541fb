"""Train a small diffusers AutoencoderKL, and encode a data set with it once.

Shapes: images (N, C, H, W) in [-1, 1]; latents, and mean and std of their posterior, (N, c, h, w). Source:
"High-Resolution Image Synthesis with Latent Diffusion Models" (2112.10752), appendix G, without its
perceptual and adversarial terms.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError
from fewstep.tasks.data import Dataset
from fewstep.tasks.training.examples import Latents
from fewstep.tasks.training.loop import Loss, Progress, fit
from fewstep.tasks.training.recipe import AutoencoderRecipe, TrainingRecipe

CHUNK = 500


def train_autoencoder(
    recipe: AutoencoderRecipe,
    data: Dataset,
    folder: Path,
    device: str = "cpu",
    every: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """The averaged AutoencoderKL, trained from scratch or from `folder`'s checkpoint; its scale is not set yet."""
    vae = build_autoencoder(recipe).to(device)
    images = torch.from_numpy(data.images)
    with torch.no_grad():
        latent = vae.encode(images[:1].to(device)).latent_dist.mean.shape[1:]

    def lessons(rng: torch.Generator) -> Loss:
        index = torch.randint(0, len(images), (recipe.batch,), generator=rng)
        noise = torch.randn(recipe.batch, *latent, generator=rng)

        def loss(part: slice) -> Tensor:
            return autoencoder_loss(vae, images[index[part]].to(device), recipe.kl_weight, noise[part].to(device))

        return loss

    return fit(vae, lessons, recipe, folder, every, progress)


def build_autoencoder(recipe: AutoencoderRecipe) -> Any:
    """An untrained AutoencoderKL with the weights of the recipe's seed."""
    from diffusers import AutoencoderKL

    torch.manual_seed(recipe.seed)
    return AutoencoderKL(**recipe.vae)


def autoencoder_loss(vae: Any, x: Tensor, kl_weight: float, eps: Tensor) -> Tensor:
    """L1 + L2 a pixel between x and the decoding of a posterior's sample, plus the weighted KL a latent."""
    posterior = vae.encode(x).latent_dist
    back = vae.decode(posterior.mean + posterior.std * eps).sample
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    pixels = nn.functional.l1_loss(back, x) + nn.functional.mse_loss(back, x)
    return torch.as_tensor(pixels + kl_weight * kl)


def check_latents(recipe: TrainingRecipe, data: Dataset) -> None:
    """ConfigurationError where autoencoder, network and data are of different sizes; for a model of pixels too."""
    shape = tuple(data.images.shape[1:])
    if recipe.autoencoder is not None:
        vae = build_autoencoder(recipe.autoencoder)
        with torch.no_grad():
            try:
                latent = vae.encode(torch.from_numpy(data.images[:1])).latent_dist.mean
                back = tuple(vae.decode(latent).sample.shape[1:])
            except RuntimeError as error:
                raise ConfigurationError(f"the autoencoder does not take {shape} images: {error}") from error
        if back != shape:
            raise ConfigurationError(f"the autoencoder makes {back} of {shape} images: take a side it can halve")
        shape = tuple(latent.shape[1:])
    side = recipe.network["sample_size"]
    if (recipe.channels, side, side) != shape:
        raise ConfigurationError(f"the data are {shape}, the network takes {side}x{side}: set in_channels, sample_size")


@torch.no_grad()
def encode(vae: Any, images: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior of every image, on the CPU and unscaled."""
    parts = [vae.encode(images[i : i + CHUNK].to(device)).latent_dist for i in range(0, len(images), CHUNK)]
    return torch.cat([p.mean.cpu() for p in parts]), torch.cat([p.std.cpu() for p in parts])


def encode_once(
    vae: Any, images: Tensor, mirrors: bool = False, device: str = "cpu", scale: float | None = None
) -> Latents:
    """The latents of all images, and of their mirrored ones; sets `scaling_factor` of the vae's configuration.

    Scaled latents have unit variance, over images, channels and places together: one number, as diffusers
    keeps it. It is that of the images themselves, mirrored or not. A vae that has its factor keeps that `scale`.
    """
    mean, std = encode(vae, images, device)
    variance = float(mean.double().var(correction=0) + std.double().square().mean())
    vae.register_to_config(scaling_factor=variance**-0.5 if scale is None else scale)
    if mirrors:
        other_mean, other_std = encode(vae, images.flip(-1), device)
        mean, std = torch.cat([mean, other_mean]), torch.cat([std, other_std])
    return Latents(mean, std, float(vae.config.scaling_factor), mirrors, weights_name(vae))


def weights_name(vae: Any) -> str:
    """Content address of the weights: 16 hex digits."""
    digest = hashlib.sha256()
    for name, value in vae.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def reconstruct(vae: Any, images: Tensor, device: str = "cpu") -> Tensor:
    """Decodings (N, C, H, W) of the posteriors' means, clipped to [-1, 1]."""
    parts = []
    for start in range(0, len(images), CHUNK):
        mean = vae.encode(images[start : start + CHUNK].to(device)).latent_dist.mean
        parts.append(vae.decode(mean).sample.clamp(-1, 1).cpu())
    return torch.cat(parts)
