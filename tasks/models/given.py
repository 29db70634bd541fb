"""Images, holes and layouts that a user gives in the place of a data set's: image i is shown the one of i mod N.

A place is an image file, a folder of such files, or (of images and holes) whatever `open_source` opens. Images and
holes are brought to the model's size as all images are; layouts by nearest neighbour, so that no class is made up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.errors import DataError
from fewstep.tasks.data import load_images, open_source
from fewstep.tasks.image_file import read_image

# Modes of Pillow in which a pixel is one number.
LABELLED = ("1", "L", "P", "I", "I;16")
ARRAY = ".npy"


def given_images(place: str, channels: int, size: int) -> Tensor:
    """Images (N, channels, size, size) in [-1, 1]; DataError where there are none that can be read."""
    if Path(place).is_file() and Path(place).suffix.lower() in Image.registered_extensions():
        return torch.from_numpy(read_image(Path(place), channels, size)[None])
    return torch.from_numpy(load_images(open_source(place), channels, size).images)


def given_holes(place: str, size: int) -> Tensor:
    """Holes (N, 1, size, size), True where a mask is white; DataError where one hides nothing, or everything."""
    holes = given_images(place, 1, size) > 0
    for i, hole in enumerate(holes):
        if not hole.any() or hole.all():
            what = "nothing" if not hole.any() else "everything"
            raise DataError(
                f"mask {i} of {place} hides {what} at {size} x {size} pixels: make white what is to be painted"
            )
    return holes


def given_layouts(place: str, size: int, classes: int) -> Tensor:
    """Layouts (N, size, size) of label maps, whose pixels are the numbers of classes.

    DataError for a file that holds colours, or a class that the model does not have.
    """
    path = Path(place)
    suffixes = {*Image.registered_extensions(), ARRAY}
    files = [path] if path.is_file() else sorted(p for p in _listed(path) if p.suffix.lower() in suffixes)
    if not files:
        raise DataError(f"no label map at {place}: give an image of one channel, a .npy array, or a folder of them")
    return torch.from_numpy(np.stack([_layout(file, size, classes) for file in files]))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None


def _layout(path: Path, size: int, classes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    try:
        if path.suffix.lower() == ARRAY:
            numbers = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                if image.mode not in LABELLED:
                    raise DataError(f"{path} holds colours ({image.mode}): a label map has one number a pixel")
                numbers = np.asarray(image)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if numbers.ndim != 2 or not (np.issubdtype(numbers.dtype, np.integer) or numbers.dtype == bool):
        raise DataError(
            f"{path} holds {numbers.dtype} of shape {numbers.shape}: a label map is a matrix of whole numbers"
        )
    wrong = numbers[(numbers < 0) | (numbers >= classes)] if numbers.dtype != bool else numbers[:0, 0]
    if wrong.size:
        raise DataError(f"{path} holds class {wrong.flat[0]}, the model knows 0 to {classes - 1}")
    return _nearest(numbers.astype(np.int64), size)


def _nearest(
    numbers: np.ndarray[tuple[int, ...], np.dtype[np.int64]], size: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The square in the middle, at (size, size) pixels."""
    side = min(numbers.shape)
    top, left = ((length - side) // 2 for length in numbers.shape)
    at = ((np.arange(size) + 0.5) * side / size).astype(np.int64)
    return numbers[np.ix_(top + at, left + at)]
