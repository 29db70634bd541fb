"""The images that a conditioned model is shown: image i's pixels, hole and maps depend on i and the seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, ModelError
from fewstep.tasks.data import load_dataset
from fewstep.tasks.models import condition_config
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.decoder import load_encoder
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.given import given_holes, given_images, given_layouts
from fewstep.tasks.models.image_condition import Layout, layout_of, load_condition
from fewstep.tasks.models.masks import free_form_masks

# Part of a hole's key, so that an image of one part never has the hole of the other part's.
SPLITS = {"train": 0, "test": 1}
# How many images' channels are kept: solvers ask for the same ones at every call.
KEPT = 1000


class Sources:
    """Known pixels and layouts of a model's images under fixed conditions."""

    def __init__(self, files: ModelFiles, device: str, conditions: Conditions) -> None:
        assert files.condition is not None
        self.files, self.device, self.conditions = files, device, conditions
        self.condition = load_condition(files.root / condition_config.FOLDER, device)
        self._encode = load_encoder(files, device)
        self._images = self._holes = self._layouts = None
        if conditions.map:
            self._layouts = given_layouts(conditions.map, files.size, files.condition.classes)
        elif conditions.image:
            self._images = given_images(conditions.image, files.channels, files.size)
            self._holes = given_holes(conditions.mask, files.size)
        else:
            self._images = self._of_dataset(files.condition.dataset, conditions.source)
        self._shown: dict[int, Tensor] = {}

    def _of_dataset(self, name: str, split: str) -> Tensor:
        images, files = torch.from_numpy(load_dataset(name, split).images), self.files
        shape = files.channels, files.size, files.size
        if images.shape[1:] != shape:
            raise ModelError(f"{files.root} makes {shape} images, its condition's data are {tuple(images.shape[1:])}")
        return images

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images (B, C, H, W) that give what is known; ConfigurationError where layouts are given alone."""
        if self._images is None:
            raise ConfigurationError("layouts were given, and no images that they are of: leave out what compares them")
        return _taken(self._images, indices).to(self.device)

    def holes(self, indices: Sequence[int]) -> Tensor:
        """Their holes (B, 1, H, W)."""
        if self._holes is not None:
            return _taken(self._holes, indices).to(self.device)
        split, seed = SPLITS[self.conditions.source], self.conditions.source_seed
        return free_form_masks(self.files.size, [(seed, split, i) for i in indices]).to(self.device)

    def layouts(self, indices: Sequence[int]) -> Tensor:
        """Their layouts (B, H, W)."""
        if self._layouts is not None:
            return _taken(self._layouts, indices).to(self.device)
        return layout_of(self.images(indices), self.condition.config.thresholds)

    @torch.no_grad()
    def shown(self, indices: Sequence[int]) -> Tensor:
        """What goes into the network behind the latents (B, E, h, w).

        Images are encoded one by one: an encoder's last bits differ with its batch, and no image may depend on what
        else is asked for.
        """
        return torch.cat([self._of(i) for i in indices])

    def _of(self, index: int) -> Tensor:
        if index not in self._shown:
            if len(self._shown) == KEPT:
                del self._shown[next(iter(self._shown))]
            self._shown[index] = self.condition(self._maps(index))
        return self._shown[index]

    def _maps(self, index: int) -> Tensor:
        side = self.files.shape[1]
        if isinstance(self.condition, Layout):
            return self.condition.maps_of(self.layouts([index]), side)
        return self.condition.maps(self.images([index]), self.holes([index]), self._encode, side)

    def finish(self, made: Tensor, indices: Sequence[int]) -> Tensor:
        """Images (B, C, H, W) that the network made, with known pixels put back."""
        if isinstance(self.condition, Layout):
            return made
        return self.condition.finish(made, self.images(indices), self.holes(indices))


def _taken(given: Tensor, indices: Sequence[int]) -> Tensor:
    return given[torch.tensor(list(indices), dtype=torch.long) % len(given)]
