"""What a descent on moments is asked to do."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, model_validator

from fewstep.search_spaces.checked import Checked
from fewstep.tasks.refinement.plan import SEED_OFFSET, RefinePlan

# Images that go through the network together; so many share what is kept of their way.
AT_ONCE = 125
# Images by which steps are compared, where there are as many.
MOST_LOOKED_AT = 250
# Images that tell derivatives: of how moments move, less has to be known than of where they are.
PROBED = 250


class MomentPlan(Checked):
    """Everything that decides what a descent on moments computes.

    `images` of the noise of `seed` are tuned on: a search's own, so that what is found is judged by what it was tuned
    to, and only finals and report tell how much of it holds. No further part begins that could lead past `limit`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    distance: Literal["moments"] = "moments"
    images: PositiveInt = 1000
    look: PositiveInt = Field(MOST_LOOKED_AT, description="images by which steps of several dampings are compared")
    tries: PositiveInt = Field(2, description="steps tried with each measurement of derivatives")
    probed: PositiveInt = Field(PROBED, description="images, the first ones, that derivatives are measured on")
    limit: PositiveInt = Field(100_000, description="denoiser calls at most")
    others: tuple[str, ...] = Field((), description="further schedules (JSON), of which the best is tuned")
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.images % self.look or self.look % AT_ONCE:
            raise ValueError(
                f"{self.images} images, {self.look} to compare steps by: give a multiple of the latter, "
                f"and of {AT_ONCE} there"
            )
        if self.probed % AT_ONCE:
            raise ValueError(f"derivatives on {self.probed} images: give a multiple of {AT_ONCE}")
        return self

    @classmethod
    def apart(cls, images: int, limit: int, seed: int) -> Self:
        """A plan on noise that no search and no judge of this seed sees."""
        return cls.build(images=images, look=min(MOST_LOOKED_AT, images), limit=limit, seed=seed + SEED_OFFSET)

    @property
    def noise_seed(self) -> int:
        """Seed of the noises that the descent sees."""
        return self.seed

    @property
    def seen(self) -> int:
        """How many images."""
        return self.images

    def calls(self, nfe: int, teacher_nfe: int) -> int:
        """Denoiser calls at most. Its first schedule is sampled in any case."""
        del teacher_nfe  # There is no teacher.
        return max(self.limit, nfe * self.images)


_PLAN: TypeAdapter[RefinePlan | MomentPlan] = TypeAdapter(
    Annotated[RefinePlan | MomentPlan, Field(discriminator="distance")]
)


def parse_plan(text: str) -> RefinePlan | MomentPlan:
    """The plan of either kind, from its JSON."""
    return _PLAN.validate_json(text)
