"""Attributes that a data set's labels give: some classes against others, and the images that show them.

Images are float32 (N, C, H, W) in [-1, 1]. A data set is cut into parts that never share an image: `fit` for
boundaries, `search` for choosing settings, `report` for what is told of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.data import (
    DATASETS,
    Dataset,
    kind_of_place,
    load_dataset,
    load_image_folder,
    load_images,
    open_source,
)
from fewstep.tasks.image_folder import class_folders

Part = Literal["fit", "search", "report"]
PARTS: tuple[Part, ...] = ("fit", "search", "report")
REST = "rest"
# Written POSITIVE/NEGATIVE in class names; an edit turns the second into the first.
NAMED: dict[str, dict[str, str]] = {
    "fashion": {
        "long-sleeves": "Pullover,Coat/T-shirt",
        "boot": "Boot/Sneaker",
        "coat": "Coat/Pullover",
        "dress": "Dress/Shirt",
        "bag": "Bag/rest",
        "sneaker": "Sneaker/Sandal",
    },
    "digits": {"nine": "9/4", "eight": "8/3", "seven": "7/1", "six": "6/5", "zero": "0/6"},
}


@dataclass(frozen=True)
class Attribute:
    """Classes that have it and classes that do not, as label numbers of a data set."""

    name: str
    positive: tuple[int, ...]
    negative: tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """Images (N, C, H, W) of one side of an attribute."""

    images: Tensor
    labels: npt.NDArray[np.int64]


def parse_attribute(text: str, data: str, classes: tuple[str, ...]) -> Attribute:
    """A known attribute of a data set by name, or POSITIVE/NEGATIVE, classes by name or number, `rest` for all others.

    ConfigurationError names what may be given.
    """
    known = NAMED.get(data, {})
    positive, slash, negative = known.get(text, text).partition("/")
    if not slash:
        raise ConfigurationError(
            f"unknown attribute {text!r} of {data}: choose one of {', '.join(known) or '(none)'}, or write "
            "POSITIVE/NEGATIVE as Boot/Sneaker, several classes with commas, `rest` for all others"
        )
    first = _labels(positive, classes)
    second = tuple(i for i in range(len(classes)) if i not in first) if negative == REST else _labels(negative, classes)
    if set(first) & set(second):
        raise ConfigurationError(f"attribute {text!r} has a class on both sides: give each to one side")
    return Attribute(text.replace("/", "-vs-"), first, second)


def _labels(text: str, classes: tuple[str, ...]) -> tuple[int, ...]:
    by_name = {name.lower(): i for i, name in enumerate(classes)}
    found = []
    for word in (part.strip().lower() for part in text.split(",")):
        if word in by_name:
            found.append(by_name[word])
        elif word.isdecimal() and int(word) < len(classes):
            found.append(int(word))
        else:
            raise ConfigurationError(f"unknown class {word!r}: choose among {', '.join(classes)}")
    return tuple(dict.fromkeys(found))


def classes_of(name: str) -> tuple[str, ...] | None:
    """Names of the classes of a data set, folder or other source, None where only its images tell; or DataError."""
    if name in DATASETS:
        return load_dataset(name).classes
    kind, place = kind_of_place(name)
    if kind == "folder":
        return tuple(p.name for p in class_folders(Path(place)))
    return open_source(place).classes or None


def load_part(name: str, part: Part, channels: int, size: int) -> Dataset:
    """One part of a data set, of a folder that holds a folder of images for each class, or of another labelled source.

    Where there is a test split it is the report, and the training split is halved; everything else is cut in three.
    DataError where the images are not channels x size x size.
    """
    if name not in DATASETS:
        kind, place = kind_of_place(name)
        load = _load_folders if kind == "folder" else _load_labelled
        whole = load(place, channels, size)
        return _cut(whole, _thirds(whole) == PARTS.index(part))
    train, test = load_dataset(name), load_dataset(name, "test")
    if train.images.shape[1:] != (channels, size, size):
        found = train.images.shape
        raise DataError(
            f"the images of {name} are {found[1]}x{found[2]}x{found[3]}, the model makes {channels}x{size}x{size}: "
            "give --data of the model's own size"
        )
    if len(train.labels) == len(test.labels) and np.array_equal(train.labels, test.labels):
        return _cut(train, _thirds(train) == PARTS.index(part))
    if part == "report":
        return test
    return _cut(train, np.arange(len(train.labels)) % 2 == PARTS.index(part))


def load_unlabelled(name: str, part: Part, channels: int, size: int, most: int) -> Tensor:
    """The first `most` images (N, C, H, W) of one part of a data set or source, whatever their labels."""
    if name in DATASETS:
        return torch.from_numpy(load_part(name, part, channels, size).images[:most])
    source = open_source(name)
    numbers = range(PARTS.index(part), len(source), len(PARTS))[:most]
    if not numbers:
        raise DataError(f"{name} has {len(source)} images, too few to be cut into {len(PARTS)} parts: give more")
    found = [batch.images for batch in source.batches(channels, size, len(numbers), numbers)]
    return torch.from_numpy(np.concatenate(found))


def _thirds(data: Dataset) -> npt.NDArray[np.int64]:
    """(N,) part numbers, each class dealt out in turn."""
    found = np.zeros(len(data.labels), np.int64)
    for label in range(len(data.classes)):
        places = np.flatnonzero(data.labels == label)
        found[places] = np.arange(len(places)) % 3
    return found


def _load_labelled(place: str, channels: int, size: int) -> Dataset:
    source = open_source(place)
    images, labels = load_images(source, channels, size)
    if (labels < 0).any() or labels.max() < 1:
        raise DataError(f"{place} has images without a label, or one class alone: give two classes")
    classes = source.classes or tuple(str(i) for i in range(labels.max() + 1))
    return Dataset(Path(place).stem, images, labels, classes, "", place)


def _load_folders(place: str, channels: int, size: int) -> Dataset:
    folder = Path(place)
    places = class_folders(folder)
    if len(places) < 2:
        raise DataError(f"{folder} holds {len(places)} folders: give one folder of images for each class, at least two")
    images = [load_image_folder(p, channels, size) for p in places]
    labels = np.repeat(np.arange(len(places)), [len(i) for i in images]).astype(np.int64)
    return Dataset(folder.name, np.concatenate(images), labels, tuple(p.name for p in places), "", str(folder))


def joined(a: Dataset, b: Dataset) -> Dataset:
    """Two parts of one data set together."""
    images, labels = np.concatenate([a.images, b.images]), np.concatenate([a.labels, b.labels])
    return Dataset(a.name, images, labels, a.classes, a.licence, a.source)


def _cut(data: Dataset, chosen: npt.NDArray[np.bool_]) -> Dataset:
    return Dataset(data.name, data.images[chosen], data.labels[chosen], data.classes, data.licence, data.source)


def side(data: Dataset, labels: tuple[int, ...], most: int, name: str, least: int = 1) -> Side:
    """The first `most` images of some classes, the classes in turn; DataError where there are fewer than `least`."""
    places = [np.flatnonzero(data.labels == label) for label in labels]
    rounds = max((len(p) for p in places), default=0)
    order = [p[i] for i in range(rounds) for p in places if i < len(p)][:most]
    if len(order) < least:
        raise DataError(
            f"{name}: {len(order)} images of class {', '.join(data.classes[i] for i in labels)}, at least {least} are "
            "needed: choose another attribute, or fewer --images"
        )
    index = np.array(order, np.int64)
    return Side(torch.from_numpy(data.images[index]), data.labels[index])
