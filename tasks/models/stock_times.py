"""A model's own diffusers scheduler, asked for its times as the model's pipeline asks it.

Pipelines of flow models give their scheduler two things besides the number of steps. `mu` is the shift for the image's
size, where `use_dynamic_shifting` is set: it is linear in the number of the image's tokens (`calculate_shift` of the
pipelines of FLUX and Stable Diffusion 3). The sigmas 1 .. 1 / n are given by most pipelines with dynamic shifting, and
by that of FLUX always; without them a scheduler spaces its steps by itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.errors import ConfigurationError, ModelError
from fewstep.tasks.models.scheduler_settings import build_scheduler, heeds

# What pipelines take for a setting of dynamic shifting that a scheduler does not have.
SHIFTING = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


def dynamic_mu(config: Mapping[str, Any], image_seq_len: int) -> float:
    """mu of an image of that many tokens, as pipelines compute it; ModelError for settings that give none."""
    said = {key: default if config.get(key) is None else float(config[key]) for key, default in SHIFTING.items()}
    low, high = said["base_image_seq_len"], said["max_image_seq_len"]
    if low == high:
        raise ModelError(f"base_image_seq_len and max_image_seq_len are both {low:g}: no shift follows from them")
    slope = (said["max_shift"] - said["base_shift"]) / (high - low)
    return slope * image_seq_len + said["base_shift"] - slope * low


@dataclass(frozen=True)
class StockTimes:
    """A scheduler's configuration, its class included, and what the pipeline gives it.

    `image_seq_len` is the number of the image's tokens, `mu` goes before what follows from it, and `even` says whether
    the pipeline gives the sigmas 1 .. 1 / n; None: where shifting is dynamic.
    """

    config: Mapping[str, Any]
    image_seq_len: int | None = None
    mu: float | None = None
    even: bool | None = None

    @property
    def name(self) -> str:
        """The scheduler's class."""
        return str(self.config["_class_name"])

    @property
    def dynamic(self) -> bool:
        """Whether the shift depends on the image's size."""
        return bool(self.config.get("use_dynamic_shifting"))

    @property
    def shift_mu(self) -> float | None:
        """mu, where shifting is dynamic; None where that is not known."""
        if not self.dynamic or self.mu is not None:
            return self.mu if self.dynamic else None
        return None if self.image_seq_len is None else dynamic_mu(self.config, self.image_seq_len)

    @property
    def shift(self) -> float | None:
        """shift in t' = shift t / (1 + (shift - 1) t), by configuration and size; None where the size is not known."""
        if not self.dynamic:
            said = self.config.get("flow_shift") if self.config.get("use_flow_sigmas") else self.config.get("shift")
            return 1.0 if said is None else float(said)
        kind = self.config.get("time_shift_type", "exponential")
        if kind not in ("exponential", "linear"):
            raise ModelError(f"{self.name} has time_shift_type = {kind!r}: exponential or linear")
        mu = self.shift_mu
        return mu if mu is None or kind == "linear" else math.exp(mu)

    def asked(self, steps: int, **settings: Any) -> Any:
        """The scheduler, some of its settings replaced, with the times of so many steps set.

        ConfigurationError where the size is not known that its shift depends on, or diffusers refuses.
        """
        # What diffusers lists there, it would take for not said.
        said = {key: value for key, value in self.config.items() if key != "_use_default_values"}
        scheduler = build_scheduler({**said, **settings})
        given: dict[str, Any] = {}
        if self.dynamic:
            if self.shift_mu is None:
                raise ConfigurationError(SIZE_NEEDED)
            given["mu"] = self.shift_mu
        takes = inspect.signature(scheduler.set_timesteps).parameters
        even = self.dynamic if self.even is None else self.even
        if even and "sigmas" in takes and heeds(self.name, "shift") and not self.config.get("use_flow_sigmas"):
            given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        else:
            given["num_inference_steps"] = steps
        try:
            with np.errstate(all="ignore"):
                scheduler.set_timesteps(**given)
        except Exception as error:  # What a bad setting raises depends on where diffusers uses it.
            raise ConfigurationError(f"{self.name} with {steps} steps: diffusers says {error}") from error
        return scheduler


SIZE_NEEDED = (
    "the shift of this model's times depends on the image's size (use_dynamic_shifting), which is not known here: "
    "give the number of its tokens as image_seq_len"
)
