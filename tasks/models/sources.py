"""The images that a conditioned model is shown: image i's pixels, hole and maps depend on i and the seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import ModelError
from fewstep.tasks.data import load_dataset
from fewstep.tasks.models import condition_config
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.decoder import load_encoder
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.image_condition import load_condition
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
        data = load_dataset(files.condition.dataset, conditions.source)
        self._images = torch.from_numpy(data.images)
        shape = files.channels, files.size, files.size
        if self._images.shape[1:] != shape:
            raise ModelError(f"{files.root} makes {shape} images, its condition's data are {self._images.shape[1:]}")
        self._shown: dict[int, Tensor] = {}

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images (B, C, H, W) that give what is known."""
        return self._images[torch.tensor(list(indices), dtype=torch.long) % len(self._images)].to(self.device)

    def holes(self, indices: Sequence[int]) -> Tensor:
        """Their holes (B, 1, H, W)."""
        split, seed = SPLITS[self.conditions.source], self.conditions.source_seed
        return free_form_masks(self.files.size, [(seed, split, i) for i in indices]).to(self.device)

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
            images, holes = self.images([index]), self.holes([index])
            maps = self.condition.maps(images, holes, self._encode, self.files.shape[1])
            self._shown[index] = self.condition(maps)
        return self._shown[index]

    def finish(self, made: Tensor, indices: Sequence[int]) -> Tensor:
        """Images (B, C, H, W) that the network made, with known pixels put back."""
        return self.condition.finish(made, self.images(indices), self.holes(indices))
