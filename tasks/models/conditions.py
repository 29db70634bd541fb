"""What a model is asked for: labels or prompts, and how strongly. Image i's condition depends on i alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_serializer

from fewstep.errors import ConfigurationError, DataError

NO_LABEL, BALANCED = "none", "balanced"
NO_NULL_LABEL = (
    "this model has no label that means none: give --labels balanced or a number, or say which of its labels it is, "
    'as {"null_label": 9} in a fewstep.json in its folder'
)
Split = Literal["", "train", "test"]


class Askable(Protocol):
    """What a model can be asked for."""

    @property
    def classes(self) -> int | None:
        """Labels that can be asked for."""

    @property
    def null_label(self) -> int | None:
        """The label that means none."""

    @property
    def text(self) -> bool:
        """Whether it takes prompts."""

    @property
    def shown(self) -> str:
        """Kind of what it is shown, `inpaint` or `layout`, or empty."""

    @property
    def embeds_guidance(self) -> bool:
        """Whether it is told the scale of guidance."""


class Conditions(BaseModel):
    """Conditions of a whole evaluation.

    `labels` is `none` (the null label), `balanced` (image i gets label i mod K), or one label's number.
    `prompts` holds one prompt a line, as text; image i takes line i mod N. `guidance` is the scale of
    classifier-free guidance, null + scale (conditional - null); 1 asks the conditional model alone. A
    schedule's own guidance goes before it. `classifier` is the folder of a saved classifier whose gradient
    guides towards the labels, by `classifier_scale`. `source` is the part of a conditioned model's data set whose image
    i mod N gives image i its known pixels or its layout; `source_seed` is what holes are drawn from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: str = Field(NO_LABEL, description="none, balanced (image i gets label i mod K) or one label")
    prompts: str = Field("", description="file with one prompt a line")
    negative_prompt: str = Field("", description="what guidance leads away from")
    guidance: float = Field(1.0, ge=0, allow_inf_nan=False, description="scale of classifier-free guidance; 1: none")
    classifier: str = Field("", description="folder of a classifier that guides to the labels")
    classifier_scale: float = Field(0.0, ge=0, allow_inf_nan=False, description="scale of classifier guidance")
    source: Split = Field("", description="for inpainting and layouts: part of the data set to be shown")
    source_seed: NonNegativeInt = Field(0, description="seed of the holes to paint")

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: Callable[[Conditions], dict[str, Any]]) -> dict[str, Any]:
        """Conditions without a source are written, and hashed, as before there were any."""
        fields = dump(self)
        if not self.source:
            del fields["source"], fields["source_seed"]
        return fields

    @cached_property
    def hash(self) -> str:
        """Content address: 16 hex digits, empty where nothing is asked for."""
        if self == Conditions():
            return ""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @cached_property
    def prompt_list(self) -> tuple[str, ...]:
        """The prompts, one a line, empty lines left out."""
        return tuple(line.strip() for line in self.prompts.splitlines() if line.strip())

    def label(self, index: int, classes: int) -> int | None:
        """Label of image `index` of a model with that many classes, None for the null label."""
        if self.labels == NO_LABEL:
            return None
        if self.labels == BALANCED:
            return index % classes
        return int(self.labels)

    def check(self, model: Askable) -> None:
        """ConfigurationError where a model cannot be asked for this."""
        classes, text, shown = model.classes, model.text, model.shown
        if self.source and not shown:
            raise ConfigurationError("this model is shown no images: leave --source out")
        if shown and not self.source:
            raise ConfigurationError(f"a model of kind {shown} is shown images: say which, as --source test")
        if self.labels != NO_LABEL and classes is None:
            raise ConfigurationError(
                f"labels {self.labels!r}: this model was trained without labels; leave --labels out"
            )
        if self.labels not in (NO_LABEL, BALANCED) and not (
            self.labels.isdecimal() and int(self.labels) < (classes or 0)
        ):
            raise ConfigurationError(f"labels {self.labels!r}: give none, balanced or a number below {classes}")
        if self.labels == NO_LABEL and classes is not None and model.null_label is None:
            raise ConfigurationError(NO_NULL_LABEL)
        if self.guidance != 1 and self.labels == NO_LABEL and not text:
            raise ConfigurationError(
                f"guidance {self.guidance:g} has nothing to lead to: give --labels, or leave it out"
            )
        unguided = classes is not None and model.null_label is None
        if self.guidance != 1 and unguided:
            raise ConfigurationError(f"guidance {self.guidance:g} needs a null label: {NO_NULL_LABEL}")
        if self.negative_prompt and (not text or model.embeds_guidance):
            raise ConfigurationError("this model is guided without a negative prompt: leave --negative-prompt out")
        if text and not self.prompt_list:
            raise ConfigurationError(
                "a text-to-image model needs prompts: give --prompts a file with one prompt a line"
            )
        if self.prompts and not text:
            raise ConfigurationError("this model takes no prompts: leave --prompts out")
        if self.classifier_scale and (not self.classifier or self.labels == NO_LABEL):
            raise ConfigurationError("classifier guidance needs --classifier FOLDER and --labels")


def read_prompts(path: Path | None) -> str:
    """The text of a prompt file, empty for None; DataError where it cannot be read or holds no prompt."""
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the prompts {path}: {error}") from error
    if not text.strip():
        raise DataError(f"{path} holds no prompt: write one prompt a line")
    return text
