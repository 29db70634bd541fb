"""What a refinement is asked to do."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fewstep.search_spaces.checked import Checked, Seed
from fewstep.tasks.refinement.parameters import PARTS, USUAL, Part

GradientDistance = Literal["network", "pixel", "features", "reference"]
GRADIENT_DISTANCES: tuple[GradientDistance, ...] = get_args(GradientDistance)
Rate = Annotated[float, Field(gt=0, le=1)]
# Step sizes of Adam. Times and told times are in units of log gaps and lambda, corrections of coefficients near 1.
RATES: dict[Part, float] = {
    "times": 0.02,
    "relaxations": 0.02,
    "shifts": 0.02,
    "points": 0.002,
    "outputs": 0.002,
    "filters": 0.0005,
}

# Training and validation noise, apart from every search (small seeds) and every report (theirs plus 1,000,003).
SEED_OFFSET = 3_000_017
# Features that a batch joins for the distance to a reference: enough for a covariance, few enough to be of now.
MEMORY = 512


class RefinePlan(Checked):
    """Everything that decides what a refinement computes.

    `images` + `validation` noises are sampled by the teacher once; each iteration sees `batch` of the former. With the
    distance `reference` there is no teacher: iterations see new noise, `images` means nothing. Adam's
    rates fall to zero along a cosine; gradients are cut to norm 1. `average` is the weight that the moving average of
    the iterates keeps at each one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[Part, ...] = USUAL
    window: NonNegativeInt = Field(0, description="newest calls whose coefficients are corrected; 0: all")
    distance: GradientDistance = "network"
    images: PositiveInt = 256
    validation: PositiveInt = 128
    batch: PositiveInt = 16
    iterations: PositiveInt = 300
    check_every: PositiveInt = 50
    average: float = Field(0.95, ge=0, lt=1)
    speed: float = Field(1.0, gt=0, le=100, description="all of Adam's rates times this")
    soft_target: float = Field(
        0.0, ge=0, le=1, description="how far a noise may move to its target, times numbers / NFE^2 (LD3: 0.001)"
    )
    seed: Seed = 0

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Plans without it are named by what they were before there was one.
        fields: dict[str, Any] = plain(self)
        return fields if self.soft_target else {k: v for k, v in fields.items() if k != "soft_target"}

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.parts:
            raise ValueError(f"nothing to tune: choose from {', '.join(PARTS)}")
        if self.distance == "reference" and self.batch >= MEMORY:
            raise ValueError(
                f"a batch of {self.batch} is too large for the distance 'reference': give up to {MEMORY - 1}"
            )
        if self.distance == "reference" and self.soft_target:
            raise ValueError("the distance 'reference' has no target that a noise could move to: leave it hard")
        if self.distance != "reference" and self.batch > self.images:
            raise ValueError(f"a batch of {self.batch} needs as many images, there are {self.images}")
        return self

    @property
    def noise_seed(self) -> int:
        """Seed of the noises that the refinement sees."""
        return self.seed + SEED_OFFSET

    @property
    def seen(self) -> int:
        """How many images, those of validation among them."""
        return self.images + self.validation

    def calls(self, nfe: int, teacher_nfe: int) -> int:
        """Denoiser calls at most, a backward one as two: pairs, iterations and checks."""
        if self.distance == "reference":
            memory = max(0, MEMORY - self.batch)
            return nfe * (memory + 3 * self.iterations * self.batch + self._checks * self.validation)
        look = int(self.distance == "network")
        pairs = (self.images + self.validation) * (teacher_nfe + look)
        soft = 0
        if self.soft_target:
            passes = self.iterations // (self.images // self.batch)
            soft = self.iterations * self.batch + 4 * passes * self.validation
        return pairs + (nfe + look) * (3 * self.iterations * self.batch + self._checks * self.validation + soft)

    @property
    def _checks(self) -> int:
        """Losses on the validation noise at most: of the start, and of both iterates at each check."""
        return 1 + 2 * -(-self.iterations // self.check_every)
