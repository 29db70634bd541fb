"""What an edit decides: at which step, along which latent, how far, and how one gets there and back.

Source: "Boundary Guided Learning-Free Semantic Control with Diffusion Models" (NeurIPS 2023). Strengths are in
standard deviations of the signed distances to the boundary, so that 0 changes nothing, and so that they compare
between latents and steps.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from pydantic import model_validator as check

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.checked import first_problem
from fewstep.search_spaces.schedule import SolverSchedule

Latent = Literal["z", "h", "both"]
# PRESET/GRID@CALLS between the clean image and the edit step, or a schedule that is stretched to fit in there.
Way = str | SolverSchedule
PUBLISHED: Way = "ddim/uniform-t@40"


class BoundaryConfig(BaseModel):
    """How a boundary is fitted: a linear SVM with penalty `C` on `images` examples of each side.

    `standardise` divides every coordinate by its standard deviation for the fit; the boundary is in raw coordinates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    C: float = Field(1.0, gt=0, allow_inf_nan=False)
    standardise: bool = False
    images: PositiveInt = 100


class EditConfig(BaseModel):
    """One kind of edit. `step` is the edit step as lambda = log(alpha / sigma).

    The edit happens once, at `step`: z, the noisy image, is moved by `strength_z` along its boundary's normal, h, the
    network's bottleneck, by `strength_h` in the one call at the step. `rescale` then gives z its old norm back. `eta`
    is DDIM's, on while the share of the way from the step to the clean image (in lambda) is in `eta_window`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: float = Field(allow_inf_nan=False)
    latent: Latent = "z"
    strength_z: float = Field(0.0, allow_inf_nan=False)
    strength_h: float = Field(0.0, allow_inf_nan=False)
    inversion: Way = PUBLISHED
    generation: Way = PUBLISHED
    eta: float = Field(0.0, ge=0, le=1)
    eta_window: tuple[float, float] = (0.0, 1.0)
    rescale: bool = False
    boundary: BoundaryConfig = BoundaryConfig()

    @check(mode="after")
    def _is_consistent(self) -> Self:
        low, high = self.eta_window
        if not 0 <= low < high <= 1:
            raise ValueError(f"eta_window is {self.eta_window}: give rising shares of the way between 0 and 1")
        for name, on in (("strength_z", self.uses_z), ("strength_h", self.uses_h)):
            if getattr(self, name) and not on:
                raise ValueError(f"{name} is {getattr(self, name)} but latent is {self.latent!r}: use 'both', or 0")
        return self

    @property
    def uses_z(self) -> bool:
        """Whether z is moved."""
        return self.latent in ("z", "both")

    @property
    def uses_h(self) -> bool:
        """Whether h is moved."""
        return self.latent in ("h", "both")

    @property
    def hash(self) -> str:
        """Content address: 16 hex digits."""
        content = self.model_dump()
        for name in ("inversion", "generation"):
            way = getattr(self, name)
            content[name] = way if isinstance(way, str) else way.hash
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def build(cls, **fields: Any) -> EditConfig:
        """Construct; ConfigurationError with the first problem instead of pydantic's error."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ConfigurationError(f"not a valid edit: {first_problem(error)}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> EditConfig:
        """Read what `model_dump_json` wrote; ConfigurationError says what is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigurationError(f"not a valid edit: {first_problem(error)}") from None
