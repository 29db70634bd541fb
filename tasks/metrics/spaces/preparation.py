"""What happens to images before a network sees them: one rule for every space that says what it takes.

Shapes: images (N, C, H, W) in [-1, 1]. In this order: grey is repeated to RGB, RGB becomes grey by ITU-R 601; the whole
image is resized, bilinear with antialiasing, where its size is another; values go to [0, 1], less `mean`, over `std`,
where these are given, and stay in [-1, 1] where they are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from fewstep.errors import ConfigurationError
from fewstep.files import read_json
from fewstep.search_spaces.checked import first_problem

GREY = (0.299, 0.587, 0.114)
Side = Annotated[int, Field(ge=1, le=65536)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preparation(BaseModel):
    """What a network takes; what is left out stays as the images have it. `output` names one of several outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int | None = Field(None, ge=1, le=4096)
    size: Side | tuple[Side, Side] | None = None
    mean: Finite | tuple[Finite, ...] | None = None
    std: Positive | tuple[Positive, ...] | None = None
    output: int | str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both, of values in [0, 1], or neither")
        return self

    @property
    def sides(self) -> tuple[int, int] | None:
        """(H, W) that images are resized to."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(self, images: Tensor) -> Tensor:
        """Images as the network takes them; gradients pass. ConfigurationError for channels that nothing leads to."""
        images = self._coloured(images)
        if self.sides is not None and tuple(images.shape[2:]) != self.sides:
            images = nn.functional.interpolate(images, self.sides, mode="bilinear", antialias=True)
        if self.mean is None or self.std is None:
            return images
        mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (self.mean, self.std))
        for name, given in (("mean", mean), ("std", std)):
            if given.numel() not in (1, images.shape[1]):
                raise ConfigurationError(f"{name} has {given.numel()} values for {images.shape[1]} channels")
        return ((images + 1) / 2 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def _coloured(self, images: Tensor) -> Tensor:
        given, wanted = images.shape[1], self.channels or images.shape[1]
        if given == wanted:
            return images
        if (given, wanted) == (1, 3):
            return images.expand(-1, 3, -1, -1)
        if (given, wanted) == (3, 1):
            weights = torch.tensor(GREY, dtype=images.dtype, device=images.device)
            return (images * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)
        raise ConfigurationError(f"images of {given} channels cannot be made images of {wanted}")


def beside(file: Path) -> Path:
    """Where a file of a network says what it takes: the same name, ending with .json."""
    return file.with_suffix(".json")


def advice(file: Path) -> str:
    """What to do where a network does not take what it is given."""
    return f'say what it takes in {beside(file)}, as {{"channels": 3, "size": 224, "mean": 0.5, "std": 0.5}}'


def read_preparation(file: Path, known: Preparation | None = None) -> Preparation:
    """What NAME.json beside a file says, over what is `known`; ConfigurationError where it cannot be read."""
    known, place = known or Preparation(), beside(file)
    if not place.is_file():
        return known
    said: Any = read_json(place, error=ConfigurationError)
    if not isinstance(said, dict):
        raise ConfigurationError(f'{place} is no JSON object: write it as {{"size": 224}}')
    try:
        return Preparation.model_validate(known.model_dump() | said)
    except ValidationError as error:
        fields = ", ".join(Preparation.model_fields)
        raise ConfigurationError(f"{place}: {first_problem(error)}; it may hold {fields}") from None
