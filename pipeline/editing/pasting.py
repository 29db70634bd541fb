"""Edits of images of another size than the model's, put back into the images that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from torch import Tensor

from fewstep.pipeline.editing.boundaries import Applied
from fewstep.tasks.data import open_source
from fewstep.tasks.image_file import pasted, quiet, read_levels

FOLDER = "pasted"


def write_pasted(images: Path, seen: Tensor, applied: Sequence[Applied], out: Path) -> Path | None:
    """A PNG of every image of another size than the model's, in a folder a strength; None where there is none.

    `images` is where the images come from, `seen` (N, C, H, W) the first of them as the model saw them.
    """
    from PIL import Image

    source = open_source(str(images))
    found = None
    for i, record in enumerate(islice(source.read(range(len(seen))), len(seen))):
        with quiet():
            levels = read_levels(record.image, seen.shape[1], name=record.name)
        if levels.shape[:2] == tuple(seen.shape[2:]):
            continue
        found = out / FOLDER
        for entry in applied:
            whole = pasted(levels, seen[i].numpy(), entry.images[i].numpy())
            folder = found / f"strength_{entry.strength:g}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(whole[..., 0] if whole.shape[-1] == 1 else whole).save(folder / f"{i:06d}.png")
    return found
