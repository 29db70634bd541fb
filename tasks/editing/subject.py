"""What is edited: a model, where images come from, and the attribute; one frozen record that any worker can take up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, PositiveInt, field_validator, model_serializer, model_validator

from fewstep.files import lines_of
from fewstep.search_spaces.checked import Checked, Seed
from fewstep.search_spaces.edit import PUBLISHED, Way

Source = Literal["images", "samples", "text"]
# The judge that is trained because it was asked for.
TRAIN = "train"
# How a text-to-image model makes the images that boundaries are fitted to.
TEXT_WAY: Way = "dpmpp-2m/uniform-t@20"
# What is left out of subjects that do not use it: stored evaluations are addressed by what a subject says.
UNUSED_LEFT_OUT = ("judge_positive", "judge_negative", "identity", "text_model", "text_call")


class EditSubject(Checked):
    """What is edited.

    `source` says what is edited: `images` of `data`, inverted; `samples` of the model, on their way from noise; or
    `text`, samples of a text-to-image model under `prompt`. Boundaries are fitted to `examples` images a side: of the
    attribute's classes in `data`, inverted by `fit_way`; for text, samples under `positive_prompt` and
    `negative_prompt`; with `text_model`, what that model makes of the two prompts by `text_way`, inverted by `fit_way`;
    `text_call` are further arguments of its pipeline's call, as NAME=VALUE.
    `prompt` is also what images are inverted and edited under by a model that takes prompts, empty: without one.

    `judge` says whether an edit shows the attribute (`judge.py`), with `judge_positive` and `judge_negative` what it
    calls the two sides; `train` has one trained, for `judge_steps`. `identity` measures what an edit leaves
    (`identity.py`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    source: Source = "images"
    data: str = ""
    attribute: str = ""
    prompt: str = ""
    positive_prompt: str = ""
    negative_prompt: str = ""
    text_model: str = ""
    text_way: Way = TEXT_WAY
    text_call: tuple[str, ...] = ()
    guidance: float = Field(1.0, ge=0, allow_inf_nan=False)
    fit_way: Way = PUBLISHED
    examples: PositiveInt = 200
    features: str = "auto"
    judge: str = ""
    judge_positive: str = ""
    judge_negative: str = ""
    judge_steps: PositiveInt = 2500
    identity: str = ""
    seed: Seed = 0

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: Callable[[EditSubject], dict[str, Any]]) -> dict[str, Any]:
        fields = dump(self)
        if not self.text_model:
            fields.pop("text_way", None)
        return {name: value for name, value in fields.items() if name not in UNUSED_LEFT_OUT or value}

    @property
    def prompted(self) -> bool:
        """Whether two prompts, not the classes of a data set, say what the attribute is."""
        return self.source == "text" or bool(self.text_model)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.source == "text":
            self._check_text()
        elif self.text_model:
            self._check_text_model()
        elif not (self.data and self.attribute):
            raise ValueError("say which images (--data) and which attribute of them (--attribute)")
        elif self.positive_prompt or self.negative_prompt:
            raise ValueError(
                "two prompts are for --source text, or for --text-model, whose images a boundary is fitted to: leave "
                "them out"
            )
        for name in ("text_way", "text_call"):
            if name in self.model_fields_set and not self.text_model:
                raise ValueError(f"{name} is how a --text-model makes images: leave it out")
        if self.source == "samples" and self.prompt:
            raise ValueError("samples under a prompt are edited by --source text: leave --prompt out")
        self._check_judge()
        return self

    @field_validator("prompt", "positive_prompt", "negative_prompt")
    @classmethod
    def _is_one_prompt(cls, text: str) -> str:
        if len(lines_of(text)) > 1:
            raise ValueError(f"{text!r}: a prompt stands on one line")
        return text

    def _check_text(self) -> None:
        if not (self.positive_prompt and self.negative_prompt and self.prompt):
            raise ValueError(
                "text needs three prompts: --positive-prompt and --negative-prompt for the boundary, and --prompt "
                "for what is edited"
            )
        if self.data:
            raise ValueError("a text boundary is fitted to samples of two prompts: leave --data out")
        if self.text_model:
            raise ValueError("--source text edits samples of the model itself: leave --text-model out")

    def _check_text_model(self) -> None:
        if not (self.positive_prompt and self.negative_prompt):
            raise ValueError(
                "a boundary from a text model needs two prompts: --positive-prompt for images with the attribute, and "
                "--negative-prompt for those without"
            )
        if self.source == "samples" and self.data:
            raise ValueError("samples are edited by a boundary from a text model: leave --data out")
        if self.source == "images" and not self.data:
            raise ValueError("say which images are edited: --data, or --source samples for the model's own")

    def _check_judge(self) -> None:
        if self.judge_negative and not self.judge_positive:
            raise ValueError("judge_negative needs judge_positive: say both, or judge_positive alone")
        if (self.judge_positive or self.judge_negative) and self.judge in ("", TRAIN):
            raise ValueError("judge_positive names labels of a --judge: give one that knows them")
        # A judge that nobody named is one of an earlier version's, which was trained.
        if self.judge not in ("", TRAIN) and self.judge_steps != type(self).model_fields["judge_steps"].default:
            raise ValueError(f"judge_steps are for --judge {TRAIN}: leave them out")
