"""What a training run is made of: one frozen, checked record, stored beside the weights it made."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class TrainingRecipe(BaseModel):
    """A diffusion model and its classifier on one data set; a run depends on nothing else but the hardware."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dataset: str
    unet: dict[str, Any] = Field(description="arguments of diffusers' UNet2DModel")
    objective: Literal["epsilon", "edm"] = "epsilon"
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    sigma_min: float = Field(0.01, gt=0, description="range of sigma, and its log-normal density, for edm")
    sigma_max: float = Field(20.0, gt=0)
    sigma_data: float = Field(0.5, gt=0, description="standard deviation of the data")
    sigma_log_mean: float = -1.2
    sigma_log_std: float = Field(1.2, gt=0)
    steps: PositiveInt = Field(description="optimiser steps")
    batch: PositiveInt = 128
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(200, ge=0)
    ema: float = Field(0.999, gt=0, lt=1)
    clip: float = Field(1.0, gt=0)
    label_dropout: float | None = Field(None, ge=0, lt=1, description="None trains without labels")
    flip: bool = False
    seed: int = 0
    weights: Literal["float32", "float16"] = "float16"
    classifier_width: PositiveInt = 32
    classifier_steps: PositiveInt = 2000
    feature_dim: PositiveInt = 32
