"""Image grids: the same noise under several points, one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fewstep.errors import EvaluationError, FewstepError
from fewstep.pipeline.executors.base import Executor
from fewstep.search_spaces.point import Point
from fewstep.tasks.work import Task

COLUMNS = 12
# Pixels of a row's label, and of its letters.
LABEL, LETTERS = 220, 14


class Picture(NamedTuple):
    """A row of a grid."""

    label: str
    point: Point


def sample_images(executor: Executor, point: Point, seed: int, count: int) -> npt.NDArray[np.float32]:
    """Images (count, C, H, W) in [-1, 1] through an executor that has nothing else in flight.

    EvaluationError where they cannot be made.
    """
    task = Task(f"images-{point.hash}", "images", point.to_json(), seed, 0, count)
    executor.submit(task)
    # What an earlier picture that failed left under way comes first.
    while (result := executor.next()).task != task:
        pass
    if result.images is None:
        raise EvaluationError(f"no images of {point.kind} {point.name}: {result.error}")
    return result.images


def write_pictures(
    executor: Executor,
    pictures: Sequence[Picture],
    seed: int,
    count: int,
    path: Path,
    warn: Callable[[str], None],
) -> Path | None:
    """A grid of what can be made; what cannot is told to `warn` and ends nothing. None where nothing can."""
    rows = []
    for label, point in pictures:
        try:
            rows.append((label, sample_images(executor, point, seed, count)))
        except FewstepError as error:
            warn(f"{path.name} lacks the row {label!r}: {error}")
    try:
        return write_grid(rows, path) if rows else None
    except (OSError, ValueError) as error:
        warn(f"{path} could not be written: {error}")
        return None


def to_pixels(images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(N, C, H, W) in [-1, 1] to (N, H, W, C) bytes."""
    return np.asarray(np.clip(np.rint((images + 1) * 127.5), 0, 255), np.uint8).transpose(0, 2, 3, 1)


def write_grid(rows: list[tuple[str, npt.NDArray[np.float32]]], path: Path, about: int = 40) -> Path:
    """One labelled row a method; small images are enlarged to `about` as many pixels."""
    size = rows[0][1].shape[-1]
    zoom = max(1, round(about / size))
    cell = size * zoom + 2
    canvas = Image.new("RGB", (LABEL + COLUMNS * cell, len(rows) * cell), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LETTERS)
    for y, (label, images) in enumerate(rows):
        draw.text((4, y * cell + cell // 2), _fitting(label, font), fill="black", font=font, anchor="lm")
        for x, pixels in enumerate(to_pixels(images[:COLUMNS])):
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            picture = picture.resize((size * zoom, size * zoom), Image.Resampling.NEAREST).convert("RGB")
            canvas.paste(picture, (LABEL + x * cell, y * cell + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)
    return path


def _fitting(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of a label as there is room for: what follows would lie under the images."""
    shown = label
    while shown and font.getlength(shown) > LABEL - 8:
        label, shown = label[:-1], f"{label[:-1]}..."
    return shown
