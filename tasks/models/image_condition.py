"""What a network is shown of an image: the image with a hole (inpainting), or its layout (semantic to image).

Both are a map at the latents' resolution, made once from the image, and a function from the map to the channels that
go into the network behind its latents ("Flow Matching in Latent Space", 2307.08698, section 3.3). That function is
trained with the network: a 1x1 convolution for layouts, nothing for holes.

Shapes: images (B, C, H, W) in [-1, 1]; holes (B, 1, H, W) boolean, True where hidden; maps (B, m, h, w) and shown
(B, E, h, w) float32; layouts (B, H, W) integers from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.errors import ModelError
from fewstep.tasks.faults import first_line
from fewstep.tasks.models.condition_config import CONFIG_FILE, WEIGHTS_FILE, ConditionConfig, read_condition
from fewstep.tasks.models.finite import check_finite

# From images to their scaled latents: the mean of the posterior.
Encode = Callable[[Tensor], Tensor]
# What is seen in the place of hidden pixels: the middle of their range, which no background has.
HIDDEN = 0.0


class ImageCondition(nn.Module):
    """Base of both; `config` is what is stored."""

    def __init__(self, config: ConditionConfig) -> None:
        super().__init__()
        self.config = config

    def maps(self, images: Tensor, holes: Tensor, encode: Encode, side: int) -> Tensor:
        """Maps (B, m, side, side) of images."""
        raise NotImplementedError

    def forward(self, maps: Tensor) -> Tensor:
        """What the network is shown (B, E, h, w)."""
        return maps

    def finish(self, made: Tensor, images: Tensor, holes: Tensor) -> Tensor:
        """What the network made of the images, with everything that was known put back."""
        return made

    def save(self, folder: Path) -> None:
        """Write configuration and weights."""
        folder.mkdir(parents=True, exist_ok=True)
        if state := self.state_dict():
            save_file({name: value.contiguous().cpu() for name, value in state.items()}, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(self.config.model_dump_json(indent=2) + "\n")


class Inpainting(ImageCondition):
    """The latents of the image without its hole, and the hole's share of each latent's pixels."""

    def maps(self, images: Tensor, holes: Tensor, encode: Encode, side: int) -> Tensor:
        """Maps (B, c + 1, side, side)."""
        seen = torch.where(holes, torch.full_like(images, HIDDEN), images)
        share = nn.functional.adaptive_avg_pool2d(holes.to(images.dtype), side)
        return torch.cat([encode(seen), share], 1)

    def finish(self, made: Tensor, images: Tensor, holes: Tensor) -> Tensor:
        """Known pixels are the image's own, bit for bit."""
        return torch.where(holes, made, images)


class Layout(ImageCondition):
    """A map of classes, as the share of each class in a latent's pixels, through a 1x1 convolution."""

    def __init__(self, config: ConditionConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Conv2d(config.classes, config.channels, 1)

    def maps(self, images: Tensor, holes: Tensor, encode: Encode, side: int) -> Tensor:
        """Maps (B, classes, side, side); their area average keeps what a nearest neighbour would drop."""
        return self.maps_of(layout_of(images, self.config.thresholds), side)

    def maps_of(self, layouts: Tensor, side: int) -> Tensor:
        """Maps of layouts (B, H, W)."""
        one_hot = nn.functional.one_hot(layouts, self.config.classes)
        return nn.functional.adaptive_avg_pool2d(one_hot.permute(0, 3, 1, 2).to(torch.float32), side)

    def forward(self, maps: Tensor) -> Tensor:
        """The embedded map."""
        embedded: Tensor = self.embedding(maps)
        return embedded


def layout_of(images: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    """Layouts (B, H, W) of images: how many thresholds the grey value, smoothed by 3x3 binomial weights, reaches."""
    grey = images.mean(1, keepdim=True)
    line = torch.tensor([0.25, 0.5, 0.25], dtype=grey.dtype, device=grey.device)
    padded = nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    smooth = nn.functional.conv2d(padded, torch.outer(line, line)[None, None])[:, 0]
    edges = torch.tensor(thresholds, dtype=grey.dtype, device=grey.device)
    return torch.bucketize(smooth.contiguous(), edges, right=True)


def build_condition(config: ConditionConfig, seed: int = 0) -> ImageCondition:
    """An untrained condition with the weights of the seed."""
    torch.manual_seed(seed)
    return Inpainting(config) if config.kind == "inpaint" else Layout(config)


def load_condition(folder: Path, device: str = "cpu") -> ImageCondition:
    """The condition of a folder, frozen; ModelError where it does not load."""
    with torch.random.fork_rng(devices=[]):
        condition = build_condition(read_condition(folder))
    if condition.state_dict():
        try:
            condition.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{folder}: the weights do not load: {first_line(error)}") from error
    check_finite(condition, folder)
    return condition.eval().requires_grad_(False).to(device)
