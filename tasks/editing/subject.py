"""What is edited: a model, where images come from, and the attribute; one frozen record that any worker can take up."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from fewstep.search_spaces.checked import Checked, Seed
from fewstep.search_spaces.edit import PUBLISHED, Way

Source = Literal["images", "samples", "text"]


class EditSubject(Checked):
    """What is edited.

    `source` says what is edited: `images` of `data`, inverted; `samples` of the model, on their way from noise; or
    `text`, samples of a text-to-image model under `prompt`. Boundaries are fitted to `examples` images a side: of the
    attribute's classes in `data`, inverted by `fit_way`, or, for text, samples under `positive_prompt` and
    `negative_prompt`. `judge` is a bundled judge's name, or the folder of a classifier of the user's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    source: Source = "images"
    data: str = ""
    attribute: str = ""
    prompt: str = ""
    positive_prompt: str = ""
    negative_prompt: str = ""
    guidance: float = Field(1.0, ge=0, allow_inf_nan=False)
    fit_way: Way = PUBLISHED
    examples: PositiveInt = 200
    features: str = "auto"
    judge: str = ""
    judge_steps: PositiveInt = 2500
    seed: Seed = 0

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.source == "text":
            if not (self.positive_prompt and self.negative_prompt and self.prompt):
                raise ValueError(
                    "text needs three prompts: --positive-prompt and --negative-prompt for the boundary, and --prompt "
                    "for what is edited"
                )
            if self.data:
                raise ValueError("a text boundary is fitted to samples of two prompts: leave --data out")
        elif not (self.data and self.attribute):
            raise ValueError("say which images (--data) and which attribute of them (--attribute)")
        elif self.positive_prompt or self.negative_prompt or self.prompt:
            raise ValueError("prompts are for --source text: leave them out")
        return self
