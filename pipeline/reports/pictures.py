"""Image grids: found schedule, best preset and teacher from the same noise, one row each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fewstep.pipeline.executors.base import Executor
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.worker import Task

COLUMNS = 12
LABEL = 110


def sample_images(executor: Executor, schedule: SolverSchedule, seed: int, count: int) -> npt.NDArray[np.float32]:
    """Images (count, C, H, W) in [-1, 1] through an executor that has nothing else in flight."""
    executor.submit(Task(f"images-{schedule.hash}", "images", schedule.to_json(), seed, 0, count))
    result = executor.next()
    if result.images is None:
        raise RuntimeError(result.error)
    return result.images


def to_pixels(images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(N, C, H, W) in [-1, 1] to (N, H, W, C) bytes."""
    return np.asarray(np.clip(np.rint((images + 1) * 127.5), 0, 255), np.uint8).transpose(0, 2, 3, 1)


def write_grid(rows: list[tuple[str, npt.NDArray[np.float32]]], path: Path, about: int = 40) -> Path:
    """One labelled row a method; small images are enlarged to `about` as many pixels."""
    size = rows[0][1].shape[-1]
    zoom = max(1, round(about / size))
    cell = size * zoom + 2
    canvas = Image.new("RGB", (LABEL + COLUMNS * cell, len(rows) * cell), "white")
    draw = ImageDraw.Draw(canvas)
    for y, (label, images) in enumerate(rows):
        draw.text((4, y * cell + cell // 2 - 6), label, fill="black")
        for x, pixels in enumerate(to_pixels(images[:COLUMNS])):
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            picture = picture.resize((size * zoom, size * zoom), Image.Resampling.NEAREST).convert("RGB")
            canvas.paste(picture, (LABEL + x * cell, y * cell + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)
    return path
