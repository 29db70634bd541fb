"""What a training run is made of: one frozen, checked record, stored beside the weights it made."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from fewstep.tasks.models.condition_config import ConditionConfig


class Optimisation(BaseModel):
    """How one network is fitted: steps, batches, rates, and the seed that every draw follows from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: PositiveInt = Field(description="optimiser steps")
    batch: PositiveInt = 128
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(200, ge=0)
    ema: float = Field(0.999, gt=0, lt=1)
    clip: float = Field(1.0, gt=0)
    seed: int = 0
    accumulate: PositiveInt = Field(1, description="parts of a batch that each process computes one after the other")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of calls; weights are float32")
    save_every: PositiveInt = Field(500, description="steps from one checkpoint to the next")


class AutoencoderRecipe(Optimisation):
    """A diffusers AutoencoderKL: its loss is L1 + L2 a pixel + `kl_weight` times the KL divergence a latent."""

    vae: dict[str, Any] = Field(description="arguments of diffusers' AutoencoderKL")
    kl_weight: float = Field(1e-3, ge=0)


class TrainingRecipe(Optimisation):
    """A generative model and its classifier on one data set; a run depends on nothing else but the hardware.

    The network is a UNet2DModel or a DiTTransformer2DModel. With an autoencoder it works on latents.
    """

    name: str
    dataset: str = Field("", description="a bundled data set; empty where one's own data are given")
    preset: str = Field("", description="a published network by name, in the place of `unet` and `transformer`")
    size: PositiveInt | None = Field(None, description="side of one's own images in pixels")
    classes: PositiveInt | None = Field(None, description="how many labels one's own data have")
    unet: dict[str, Any] | None = Field(None, description="arguments of diffusers' UNet2DModel")
    transformer: dict[str, Any] | None = Field(None, description="arguments of diffusers' DiTTransformer2DModel")
    autoencoder: AutoencoderRecipe | None = None
    objective: Literal["epsilon", "edm", "flow"] = "epsilon"
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    sigma_min: float = Field(0.01, gt=0, description="range of sigma, and its log-normal density, for edm")
    sigma_max: float = Field(20.0, gt=0)
    sigma_data: float = Field(0.5, gt=0, description="standard deviation of the data")
    sigma_log_mean: float = -1.2
    sigma_log_std: float = Field(1.2, gt=0)
    label_dropout: float | None = Field(None, ge=0, lt=1, description="None trains without labels")
    flip: bool = False
    condition: ConditionConfig | None = Field(None, description="what the network is shown besides, in its last inputs")
    holes: PositiveInt = Field(1, description="holes an image, for inpainting")
    starts_from: str | None = Field(None, description="zoo entry that gives the autoencoder and the first weights")
    autoencoder_of: str | None = Field(None, description="zoo entry whose autoencoder is taken instead of a new one")
    checkpointing: bool = Field(False, description="compute activations again in the backward pass: less memory")
    weights: Literal["float32", "float16"] = "float16"
    features_of: str | None = Field(None, description="zoo entry whose classifier is taken instead of a new one")
    classifier_width: PositiveInt = 32
    classifier_steps: PositiveInt = 2000
    feature_dim: PositiveInt = 32

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.unet is None) == (self.transformer is None):
            raise ValueError("give either `unet` or `transformer`, or a `preset`")
        if self.label_dropout is not None and self.null_label is None:
            raise ValueError("a network that learns labels needs num_class_embeds: the classes and one null label")
        if self.condition and (self.autoencoder is None or self.flip or self.condition.dataset != self.dataset):
            raise ValueError("a condition needs an autoencoder, images of `dataset` itself, and no flips")
        if self.autoencoder and self.autoencoder.vae.get("latent_channels", 4) != self.channels:
            raise ValueError("in_channels of the network must be the autoencoder's latent_channels and the condition's")
        if self.autoencoder_of and (self.autoencoder is None or self.starts_from is not None):
            raise ValueError(
                "`autoencoder_of` names where `autoencoder` is taken from; `starts_from` gives one besides"
            )
        return self

    def reseeded(self, seed: int) -> Self:
        """The same recipe for another checkpoint: other weights and draws, the zoo entry's classifier."""
        kept = self.features_of or self.name
        return self.model_copy(update={"name": f"{self.name}-seed{seed}", "seed": seed, "features_of": kept})

    @property
    def trains_autoencoder(self) -> bool:
        """Whether the autoencoder is a new one."""
        return self.autoencoder is not None and self.starts_from is None and self.autoencoder_of is None

    @property
    def command(self) -> str:
        """What makes it."""
        name = self.name.removesuffix(f"-seed{self.seed}")
        return f"fewstep train {name}" + (f" --seed {self.seed}" if name != self.name else "")

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of the network, of either kind."""
        return self.unet or self.transformer or {}

    @property
    def channels(self) -> int:
        """Channels of what the network makes."""
        return int(self.network.get("in_channels", 0)) - (self.condition.channels if self.condition else 0)

    @property
    def null_label(self) -> int | None:
        """The label that means `no label`: the last of a UNet's, the one behind a transformer's; None without any."""
        if self.transformer is not None:
            return int(self.transformer.get("num_embeds_ada_norm", 1000))
        count = self.network.get("num_class_embeds")
        return None if count is None else int(count) - 1
