"""What a cache keeps of an image: 8-bit pixels, or the posterior of a pretrained AutoencoderKL.

Shapes: images (B, C, H, W) in [-1, 1]; mean and std of a posterior (B, c, h, w), unscaled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ModelError
from fewstep.files import read_json
from fewstep.tasks.models.files import ZOO
from fewstep.tasks.models.networks import frozen, load_part
from fewstep.tasks.training.autoencoder import weights_name
from fewstep.tasks.training.cache import Rows

CLASS = "AutoencoderKL"
# Images that are encoded at once.
SLICE = 16


class PixelEncoder:
    """Levels of 8 bits, rounded where images were resized."""

    hash = "pixels of 8 bits"

    def __call__(self, images: Tensor) -> Rows:
        """`pixels` (B, C, H, W), uint8."""
        return {"pixels": ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()}


class LatentEncoder:
    """Mean and standard deviation of the posterior, and with `mirrors` those of the mirrored image too."""

    def __init__(self, vae: Any, device: str, mirrors: bool) -> None:
        self.vae, self.device, self.mirrors = vae, device, mirrors
        self.hash = f"posteriors of {weights_name(vae)}" + (" and mirrored" if mirrors else "")

    def __call__(self, images: Tensor) -> Rows:
        """`mean` and `std` (B, c, h, w), or (B, 2, c, h, w) with the mirrored ones."""
        both = [images, images.flip(-1)] if self.mirrors else [images]
        found = [self._posterior(x) for x in both]
        if not self.mirrors:
            return found[0]
        return {name: torch.stack([torch.from_numpy(f[name]) for f in found], 1).numpy() for name in found[0]}

    @torch.no_grad()
    def _posterior(self, images: Tensor) -> Rows:
        parts = [images[i : i + SLICE].to(self.device) for i in range(0, len(images), SLICE)]
        found = [self.vae.encode(part).latent_dist for part in parts]
        return {
            "mean": torch.cat([posterior.mean.cpu() for posterior in found]).numpy(),
            "std": torch.cat([posterior.std.cpu() for posterior in found]).numpy(),
        }


def find_autoencoder(place: str) -> Path:
    """The folder of an AutoencoderKL: one with its config.json, a pipeline's that has `vae`, or a bundled model's name.

    Raises ModelError where there is none, or one of another class.
    """
    tried = (Path(place), Path(place) / "vae", ZOO / place / "vae")
    for folder in tried:
        config = folder / "config.json"
        if config.is_file():
            found = read_json(config, error=ModelError)
            kind = found.get("_class_name") if isinstance(found, dict) else None
            if kind == CLASS:
                return folder
            raise ModelError(f"{folder} holds {kind or 'something else'}: training takes the latents of {CLASS}")
    raise ModelError(f"no autoencoder at {place!r}: give a folder that holds {CLASS}'s config.json, or vae/config.json")


def load_autoencoder(folder: Path, device: str) -> Any:
    """The frozen autoencoder in single precision. Raises ModelError where it cannot be used."""
    from diffusers import AutoencoderKL

    vae = frozen(load_part(AutoencoderKL, folder, torch_dtype=torch.float32), device)
    if vae.config.get("latents_mean") is not None or vae.config.get("latents_std") is not None:
        raise ModelError(f"{folder} scales each channel of its latents by itself, which training does not do")
    # diffusers would store where on this machine it was loaded from.
    vae.register_to_config(_name_or_path=folder.parent.name if folder.name == "vae" else folder.name)
    return vae
