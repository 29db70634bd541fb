"""Pictures of edits: the report's first images, none picked.

STUDY/grid.png                      a row a strength
STUDY/strengths/strength-NN.png     a picture a strength, for the dashboard's slider: originals above their edits
STUDY/strengths/strengths.json      which strength each is of
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from fewstep.files import write_text
from fewstep.pipeline.editing.boundaries import at_strength, strength_of
from fewstep.pipeline.reports.pictures import COLUMNS, to_pixels, write_grid
from fewstep.search_spaces.edit import EditConfig
from fewstep.tasks.editing.bench import Bench

# From minus the edit's own strength to 1.5 times.
_LOW, _HIGH = -1.0, 1.5
# Images of a strip's pictures, and the pixels of one: small ones are enlarged, large ones reduced.
_SHOWN, _LEAST, _MOST, _GAP = 6, 128, 256, 4
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


def write_strip(bench: Bench, config: EditConfig, count: int, out: Path) -> dict[str, Path]:
    """The edit at `count` strengths, evenly from minus its own to 1.5 times; nothing where it moves nothing."""
    own = strength_of(config)
    if not count or not own:
        return {}
    # As many as the grid's, which are kept: what it shows is not made again.
    originals = bench.originals("report", COLUMNS).images[:_SHOWN]
    strengths, files = [own * float(factor) for factor in np.linspace(_LOW, _HIGH, count)], dict[str, Path]()
    out.mkdir(parents=True, exist_ok=True)
    for place, strength in enumerate(strengths):
        edited = bench.edit("report", COLUMNS, at_strength(config, strength))[:_SHOWN]
        name = f"strength-{place:02d}.png"
        files[name] = _above(originals, edited, out / name)
    told = {"own": own, "strengths": strengths, "files": list(files)}
    files["strengths.json"] = write_text(out / "strengths.json", json.dumps(told, indent=2) + "\n")
    for left in set(out.glob("strength-*.png")) - set(files.values()):
        left.unlink()
    return files


def _above(first: Tensor, second: Tensor, path: Path) -> Path:
    """Two rows of images (N, C, H, W) in one file."""
    high, wide = first.shape[-2:]
    factor = max(1, _LEAST // high) if high < _LEAST else min(1.0, _MOST / high)
    size, way = (round(wide * factor), round(high * factor)), Resampling.NEAREST if factor > 1 else Resampling.LANCZOS
    canvas = Image.new("RGB", (len(first) * (size[0] + _GAP) - _GAP, 2 * size[1] + 2 * _GAP), "white")
    for row, images in enumerate((first, second)):
        for place, pixels in enumerate(to_pixels(images.numpy())):
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
            canvas.paste(image.resize(size, way), (place * (size[0] + _GAP), row * (size[1] + 2 * _GAP)))
    canvas.save(path)
    return path
