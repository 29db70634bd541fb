"""Pictures of edits: the report's first images, none picked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fewstep.pipeline.editing.boundaries import at_strength, strength_of
from fewstep.pipeline.reports.pictures import COLUMNS, write_grid
from fewstep.search_spaces.edit import EditConfig
from fewstep.tasks.editing.bench import Bench

# Rows of labelled images (N, C, H, W), from top to bottom.
Pictures = list[tuple[str, Tensor]]


def at_strengths(bench: Bench, config: EditConfig, count: int = COLUMNS) -> Pictures:
    """Originals of the report's part, and the edit at multiples of its strength: 0 is the reconstruction."""
    own = strength_of(config)
    found = [("original", bench.originals("report", count).images)]
    for factor in (-1.0, 0.0, 0.5, 1.0, 1.5):
        moved = at_strength(config, factor * own)
        found.append((f"strength {factor * own:.1f}", bench.edit("report", count, moved)))
    return found


def draw(pictures: Sequence[tuple[str, Tensor]], path: Path, pixels: int = 0) -> Path:
    """Labelled rows of images as one picture, each image enlarged to about `pixels` where it is smaller."""
    return write_grid([(label, images[:COLUMNS].numpy()) for label, images in pictures], path, pixels or 40)
