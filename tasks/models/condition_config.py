"""What a conditioned network is shown besides its noisy latents: the record in a model's `condition/config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from fewstep.errors import ModelError
from fewstep.files import read_text

FOLDER, CONFIG_FILE, WEIGHTS_FILE = "condition", "config.json", "diffusion_pytorch_model.safetensors"


class ConditionConfig(BaseModel):
    """The last `channels` of a network's input channels, and what is in them.

    `inpaint`: the scaled latents of an image with a hole, and the hole's share of each latent's pixels. `layout`: an
    embedding of a map of classes, class k where the smoothed image lies between thresholds k - 1 and k. `dataset`
    is where images with holes and layouts are taken from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["inpaint", "layout"]
    dataset: str
    channels: PositiveInt
    thresholds: tuple[float, ...] = Field((), description="rising, in [-1, 1]; for layouts")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.kind == "layout") != bool(self.thresholds):
            raise ValueError("thresholds are for layouts, which need at least one")
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError(f"thresholds {self.thresholds} do not rise")
        return self

    @property
    def classes(self) -> int:
        """Classes of a layout."""
        return len(self.thresholds) + 1


def read_condition(folder: Path) -> ConditionConfig:
    """The record in a condition's folder; ModelError where it cannot be read or makes no sense."""
    try:
        return ConditionConfig.model_validate_json(read_text(folder / CONFIG_FILE, error=ModelError))
    except (OSError, ValidationError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG_FILE} does not say what the network is shown: {error}") from error
