"""The judge of an edit's success: what says whether an image shows an attribute, and has no part in the edit.

A judge is found as features are (`tasks/metrics/spaces/kind.py`), in a registry of its own: its features are scores
(N, K), one for each label. Of labels that exclude each other the highest score is the image's; labels that are told one
by one (`separate`, or K = 1) are shown where their score is above 0. Other packages bring kinds of judges by entry
points of the group `fewstep.judges`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.plugins import Registry
from fewstep.tasks.editing.attributes import Attribute, classes_of, parse_attribute
from fewstep.tasks.editing.subject import TRAIN, EditSubject
from fewstep.tasks.image_folder import tell
from fewstep.tasks.metrics.extractor import kind_in
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.metrics.spaces.kind import FeatureKind
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.judge import bundled_judges

# In the order in which they are asked whether they take what was given.
JUDGES = Registry(
    "judge",
    {
        "transformers": "fewstep.tasks.editing.judge_kinds:TRANSFORMERS",
        "classifier": "fewstep.tasks.editing.judge_kinds:CLASSIFIER",
        "torchscript": "fewstep.tasks.metrics.spaces.torchscript:KIND",
        "onnx": "fewstep.tasks.metrics.spaces.onnx:KIND",
        "callable": "fewstep.tasks.metrics.spaces.called:KIND",
    },
)
# The kind of the classifiers that are fewstep's own.
OWN = "classifier"
# Between labels of one side.
BETWEEN = "|"
SHOWN = 6
PROBES = 16
# A label without a name of its own: transformers counts them so.
UNNAMED = re.compile(r"(LABEL_)?\d+")


@runtime_checkable
class ReadsTexts(Protocol):
    """Scores of images by texts, which are still to be told."""

    def of(self, texts: Sequence[str]) -> FeatureExtractor:
        """The scores (N, K) by K texts."""


@dataclass(frozen=True)
class Judge:
    """Scores (N, K) of images, and which labels mean that the attribute is there, or that it is not.

    Without `negative` an image lacks it where it does not have it. `accuracy` is that of its labels, NaN if unknown.
    """

    scores: FeatureExtractor
    positive: tuple[int, ...]
    negative: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Share of images it has not seen that it labels right, NaN where nobody says."""
        return float(getattr(self.scores, "accuracy", float("nan")))

    @property
    def separate(self) -> bool:
        """Whether each label is told for itself."""
        return self.scores.dim == 1 or bool(getattr(self.scores, "separate", False))

    def has(self, images: Tensor) -> npt.NDArray[np.bool_]:
        """Whether images (N, C, H, W) in [-1, 1] show the attribute (N,)."""
        return self._shown(self.scores(images), self.positive)

    def lacks(self, images: Tensor) -> npt.NDArray[np.bool_]:
        """Whether they show what the attribute is held against (N,)."""
        scores = self.scores(images)
        return self._shown(scores, self.negative) if self.negative else ~self._shown(scores, self.positive)

    def _shown(self, scores: Array, labels: Sequence[int]) -> npt.NDArray[np.bool_]:
        if self.separate:
            return np.asarray((scores[:, list(labels)] > 0).any(axis=1), np.bool_)
        return np.isin(scores.argmax(axis=1), labels)


def find_scores(subject: EditSubject, files: ModelFiles, device: str) -> FeatureExtractor:
    """The scores of the subject's judge. ConfigurationError or ModelError where there is none that takes the images."""
    found = kind_in(JUDGES, subject.judge, files)
    if found is None:
        raise ConfigurationError(
            f"no judge {subject.judge!r}: give {', '.join(bundled_judges())} (bundled), the folder of an image "
            "classifier or CLIP model of transformers, or of a classifier that `fewstep train` made, a TorchScript "
            f"(.pt, .ts) or ONNX file, MODULE:CALLABLE, or {TRAIN}"
        )
    kind, argument = found
    try:
        made = kind.make(argument, files, device)
    except ConfigurationError as error:
        # Kinds that are shared with features speak of features.
        raise type(error)(_of_judge(str(error))) from None
    if not isinstance(made, ReadsTexts):
        return made
    positive, negative = _sides(subject, reads=True)
    if not (positive and negative):
        raise ConfigurationError(
            f"judge {subject.judge} compares images with texts: say what images with the attribute show and what those "
            "without it do, as --judge-positive 'a smiling face' --judge-negative 'a face'"
        )
    return made.of((*positive, *negative))


def judge_kind(subject: EditSubject, files: ModelFiles) -> str:
    """The name of the judge's kind, empty where none is named or found, or where it will be trained."""
    if not subject.judge or subject.judge == TRAIN:
        return ""
    found = kind_in(JUDGES, subject.judge, files)
    return next((name for name in JUDGES.names if found and JUDGES.load(name) is found[0]), "")


def make_judge(
    subject: EditSubject, files: ModelFiles, device: str, attribute: Attribute, classes: Sequence[str]
) -> Judge:
    """The subject's judge of an attribute of `classes`.

    ConfigurationError or ModelError where it is not there, does not take the model's images, or does not know the
    attribute's labels.
    """
    made = judge_of(find_scores(subject, files, device), subject, attribute, classes)
    if made.separate:
        drawn = torch.rand((PROBES, files.channels, files.size, files.size), generator=torch.Generator().manual_seed(0))
        scores = made.scores(drawn * 2 - 1)
        if ((scores > 0) & (scores < 1)).all():
            tell(
                f"judge {subject.judge}: its scores lie between 0 and 1, as probabilities do, and are held against 0: "
                "have it give log-odds if it gives probabilities"
            )
    return made


def judge_of(scores: FeatureExtractor, subject: EditSubject, attribute: Attribute, classes: Sequence[str]) -> Judge:
    """A judge of scores: its labels are those that the subject names, or the data's own classes."""
    labels = tuple(getattr(scores, "labels", ())) or tuple(str(i) for i in range(scores.dim))
    positive, negative = _sides(subject, getattr(scores, "reads", False))
    separate = scores.dim == 1 or bool(getattr(scores, "separate", False))
    if not positive and scores.dim == 1:
        return Judge(scores, (0,), ())
    if positive:
        sides = [tuple(_label(name, labels, subject.judge) for name in side) for side in (positive, negative)]
        first = tuple(dict.fromkeys(sides[0]))
        if both := set(first) & set(sides[1]):
            raise ConfigurationError(f"judge {subject.judge}: label {labels[both.pop()]!r} is on both sides")
        if len(first) == len(labels) and not separate:
            raise ConfigurationError(
                f"judge {subject.judge}: every label means the attribute, so that all images show it"
            )
        rest = () if separate else tuple(i for i in range(len(labels)) if i not in first)
        return Judge(scores, first, tuple(dict.fromkeys(sides[1])) or rest)
    return Judge(
        scores, *(_by_class(side, classes, labels, subject) for side in (attribute.positive, attribute.negative))
    )


def check_judge(subject: EditSubject, files: ModelFiles) -> None:
    """Refuse, before anything is sampled, a judge that cannot judge; one that will be trained is not looked at."""
    if not subject.judge or subject.judge == TRAIN:
        return
    if subject.prompted:
        make_judge(subject, files, "cpu", PROMPTED, PROMPTED_CLASSES)
        return
    classes = classes_of(subject.data)
    if classes is None:
        find_scores(subject, files, "cpu")
        return
    make_judge(subject, files, "cpu", parse_attribute(subject.attribute, subject.data, classes), classes)


def identity_of(scores: FeatureExtractor) -> str:
    """Content address of what judges: 16 hex digits."""
    return hashlib.sha256(f"judge {scores.hash}".encode()).hexdigest()[:16]


def with_judge(subject: EditSubject) -> EditSubject:
    """The subject of a search that began before a judge had to be named: one is trained, as then, and that is said."""
    if subject.judge:
        return subject
    tell(f"no judge was named for this search: one is trained, as it was when it began ({subject.judge_steps} steps)")
    return subject.model_copy(update={"judge": TRAIN})


def check_named(subject: EditSubject) -> None:
    """ConfigurationError where the subject names no judge."""
    if not subject.judge:
        raise ConfigurationError(
            f"say what judges success: --judge {'|'.join(bundled_judges())}, a folder, a file or MODULE:CALLABLE; or "
            f"--judge {TRAIN}, to train a small classifier on the images that boundaries and the search see"
        )


# What the two prompts of a boundary make, as a data set would say it.
PROMPTED_CLASSES = ("without", "with")
PROMPTED = Attribute("prompted", (1,), (0,))


def _sides(subject: EditSubject, reads: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the judge calls the two sides, empty where nobody says; one that reads texts may know the two prompts."""
    if reads and subject.prompted and not subject.judge_positive:
        return (subject.positive_prompt,), (subject.negative_prompt,)
    sides = (subject.judge_positive, subject.judge_negative)
    first, second = (tuple(p for part in side.split(BETWEEN) if (p := part.strip())) for side in sides)
    return first, second


def _label(name: str, labels: Sequence[str], judge: str) -> int:
    known = [label.lower() for label in labels]
    if name.lower() in known:
        return known.index(name.lower())
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    some = ", ".join(labels[:SHOWN]) + (", ..." if len(labels) > SHOWN else "")
    raise ConfigurationError(
        f"judge {judge} has no label {name!r}: it has {some}; several stand with {BETWEEN} between"
    )


def _by_class(
    side: Sequence[int], classes: Sequence[str], labels: Sequence[str], subject: EditSubject
) -> tuple[int, ...]:
    """Labels of the judge for classes of the data: by name, or by number where labels have none and are as many."""
    known = {label.lower(): i for i, label in enumerate(labels)}
    names = [classes[i].lower() for i in side]
    if all(name in known for name in names):
        return tuple(known[name] for name in names)
    if len(labels) == len(classes) and all(UNNAMED.fullmatch(label) for label in labels):
        return tuple(side)
    raise ConfigurationError(
        f"judge {subject.judge} tells {len(labels)} labels apart, the data have {len(classes)} classes of other names: "
        f"say which labels mean the attribute, --judge-positive LABEL (several with {BETWEEN} between), and "
        "--judge-negative"
    )


def _of_judge(message: str) -> str:
    return f"judge {message.removeprefix('features ')}" if message.startswith("features ") else message


__all__ = ["JUDGES", "FeatureKind", "Judge", "check_judge", "check_named", "find_scores", "make_judge", "with_judge"]
