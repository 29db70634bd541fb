"""What a model is asked for: labels or prompts, and how strongly. Image i's condition depends on i alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator, model_serializer

from fewstep.errors import ConfigurationError, DataError
from fewstep.files import lines_of, read_text
from fewstep.tasks.image_folder import SUFFIXES

NO_LABEL, BALANCED = "none", "balanced"
NO_NULL_LABEL = (
    "this model has no label that means none: give --labels balanced or a number, or say which of its labels it is, "
    'as {"null_label": 9} in a fewstep.json in its folder'
)
# What is left out of conditions that do not use it.
UNUSED_LEFT_OUT = ("height", "width", "call", "image", "mask", "map")
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
    def piped(self) -> bool:
        """Whether a whole pipeline is called."""

    @property
    def embeds_guidance(self) -> bool:
        """Whether it is told the scale of guidance."""


class Conditions(BaseModel):
    """Conditions of a whole evaluation.

    `labels` is `none` (the null label), `balanced` (image i gets label i mod K), or one label's number.
    `prompts` holds one prompt a line, as text, blank lines left out; image i takes prompt i mod N. `guidance` is the
    scale of classifier-free guidance, null + scale (conditional - null); 1 asks the conditional model alone. A
    schedule's own guidance goes before it. `classifier` is the folder of a saved classifier whose gradient
    guides towards the labels, by `classifier_scale`. `source` is the part of a conditioned model's data set whose image
    i mod N gives image i its known pixels or its layout; `source_seed` is what holes are drawn from. `image` with
    `mask`, or `map`, take its place by files of a user's own. `height`, `width` and `call` are arguments of a whole
    pipeline.
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
    image: str = Field("", description="an image or a folder of them, to be painted into or to start from")
    mask: str = Field(
        "", description="what of --image to paint anew: an image that is white there, or a folder of them"
    )
    map: str = Field("", description="for layouts: a label map (an image of one channel, .npy) or a folder of them")
    height: PositiveInt | None = Field(None, description="for pipelines: height of the images [default: its own]")
    width: PositiveInt | None = Field(None, description="for pipelines: width of the images [default: its own]")
    call: tuple[str, ...] = Field(
        (), description="for pipelines: more arguments of their call, as strength=0.6,image=photo.png"
    )

    @field_validator("prompts", "negative_prompt")
    @classmethod
    def _is_unicode(cls, text: str) -> str:
        # An argument of the command line may hold bytes that are no UTF-8.
        if not text.isascii() and (stray := [c for c in text if "\ud800" <= c <= "\udfff"]):
            raise ValueError(f"{stray[0]!r} is no character: write it in UTF-8")
        return text

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: Callable[[Conditions], dict[str, Any]]) -> dict[str, Any]:
        """Conditions are written, and hashed, without what came later and is not used."""
        fields = dump(self)
        if not self.source:
            del fields["source"], fields["source_seed"]
        return {name: value for name, value in fields.items() if name not in UNUSED_LEFT_OUT or value}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A checked copy with other fields: pydantic's own keeps what was computed from those of before."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(fields | dict(update or {}))

    @cached_property
    def hash(self) -> str:
        """Content address: 16 hex digits, empty where nothing is asked for."""
        if self == Conditions():
            return ""
        asked = self.model_dump_json() + "".join(_content(path) for path in self.shown_files.values())
        if self.prompt_list != _lines(self.prompts.splitlines()):
            asked += " in lines"  # Other prompts than those that were once read of such a text.
        return hashlib.sha256(asked.encode()).hexdigest()[:16]

    @cached_property
    def prompt_list(self) -> tuple[str, ...]:
        r"""The prompts, one a line, blank lines left out. A line ends with \n, \r\n or \r and nothing else."""
        return _lines(lines_of(self.prompts))

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments of a pipeline's call by name, values read as JSON where they are."""
        found: dict[str, Any] = {}
        for pair in self.call:
            name, equals, text = pair.partition("=")
            if not equals or not name.isidentifier():
                raise ConfigurationError(f"call {pair!r}: write an argument as NAME=VALUE")
            try:
                found[name] = json.loads(text)
            except ValueError:
                found[name] = text
        of_options = {"height": self.height, "width": self.width, "image": self.image, "mask_image": self.mask}
        return found | {name: value for name, value in of_options.items() if value}

    @property
    def shown_files(self) -> dict[str, Path]:
        """Image files and folders of such files among the arguments."""
        texts = {name: value for name, value in self.arguments.items() if isinstance(value, str)}
        shown = {name: Path(text) for name, text in texts.items() if _is_shown(Path(text))}
        given = {"image": self.image, "mask_image": self.mask, "map": self.map}
        return shown | {name: Path(text) for name, text in given.items() if text and Path(text).exists()}

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
        self._check_shown(shown)
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
        others = [name for name in self.arguments if not (shown and name in ("image", "mask_image"))]
        if others and not model.piped:
            raise ConfigurationError(
                f"{others[0]} is an argument of a pipeline's call, and this model is sampled without "
                "its pipeline: leave it out"
            )
        if self.classifier and not self.classifier_scale:
            raise ConfigurationError("a classifier that guides needs a scale: give --classifier-scale")
        if self.classifier_scale and (not self.classifier or self.labels == NO_LABEL):
            raise ConfigurationError("classifier guidance needs --classifier FOLDER and --labels")

    def _check_shown(self, shown: str) -> None:
        given = {"--source": self.source, "--image": self.image, "--mask": self.mask, "--map": self.map}
        said = [option for option, value in given.items() if value]
        kinds = {"inpaint": (["--source"], ["--image", "--mask"]), "layout": (["--source"], ["--map"])}
        if not shown:
            # Images are what a pipeline may take, and `check` asks it.
            if wrong := [option for option in said if option in ("--source", "--map")]:
                raise ConfigurationError(f"this model is shown no images: leave {wrong[0]} out")
        elif said not in kinds[shown]:
            ways = " or ".join(" with ".join(way) for way in kinds[shown])
            told = f"not {', '.join(said)}" if said else "as --source test"
            raise ConfigurationError(f"a model of kind {shown} is shown images: say which by {ways}, {told}")


def read_prompts(path: Path | None) -> str:
    """The text of a prompt file, empty for None; DataError where it cannot be read or holds no prompt."""
    if path is None:
        return ""
    text = read_text(path, "the prompts")
    if not text.strip():
        raise DataError(f"{path} holds no prompt: write one prompt a line")
    return text


def join_prompts(prompts: Sequence[object]) -> str:
    """Prompts given as a list, as the text that `Conditions` keeps; ConfigurationError where one is no line of its own.

    Image i is shown prompt i mod N: a prompt that is blank or holds a line end would move all that follow it.
    """
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip() or len(lines_of(prompt)) > 1:
            raise ConfigurationError(f"prompt {i} of the list is {prompt!r}: each is text on one line, and not blank")
    return "\n".join(map(str, prompts))


def _is_shown(path: Path) -> bool:
    return path.is_dir() or (path.suffix.lower() in SUFFIXES and path.is_file())


def _content(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def _lines(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(line.strip() for line in lines if line.strip())
