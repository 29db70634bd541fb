"""Data of the checkpoints that no setting was tuned on: what installs with scikit-learn, matplotlib and Debian."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fewstep.tasks.data import Dataset, load_dataset

Pixels = npt.NDArray[np.uint8]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FACES = (
    *(f"DejaVu{kind}{style}" for kind in ("Sans", "SansMono") for style in ("", "-Bold", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic")),
)
GLYPH, PATCH = 12, 12
GLYPHS, PATCHES, TEST = 40_000, 40_000, 8_000
# Glyphs are drawn so many times larger, and averaged.
FINE = 4


def _scaled(images: Pixels) -> npt.NDArray[np.float32]:
    return images.astype(np.float32) / 127.5 - 1.0


def fashion(split: str) -> Dataset:
    """Fashion-MNIST at 14x14: means of 2x2 pixels."""
    whole = load_dataset("fashion", split)
    count = len(whole.images)
    halved = whole.images.reshape(count, 1, 14, 2, 14, 2).mean((3, 5)).astype(np.float32)
    return Dataset("fashion-14", halved, whole.labels, whole.classes, whole.licence, whole.source)


def glyphs(split: str) -> Dataset:
    """Letters of matplotlib's fonts at 12x12, scaled, turned and shifted at random; 52 classes."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng(11 if split == "train" else 12)
    count, side = (GLYPHS if split == "train" else TEST), GLYPH * FINE
    images, labels = np.zeros((count, 1, GLYPH, GLYPH), np.uint8), rng.integers(0, len(LETTERS), count)

    @cache
    def font(face: str, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(str(folder / f"{face}.ttf"), size)

    for i in range(count):
        canvas = Image.new("L", (side, side))
        face, size = FACES[rng.integers(len(FACES))], int(rng.integers(34, 47))
        middle = tuple(side / 2 + rng.uniform(-3, 3, 2))
        ImageDraw.Draw(canvas).text(middle, LETTERS[labels[i]], fill=255, font=font(face, size), anchor="mm")
        turned = canvas.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR)
        images[i, 0] = np.asarray(turned.resize((GLYPH, GLYPH), Image.Resampling.BOX))
    return Dataset("glyphs-12", _scaled(images), labels.astype(np.int64), tuple(LETTERS), "fonts' own", "matplotlib")


def patches(split: str) -> Dataset:
    """12x12 colour patches of scikit-learn's two photographs, a third of their size; the right part is held out.

    A class is a photograph and by how many right angles the patch was turned.
    """
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    small = [np.asarray(p.resize((p.width // 3, p.height // 3), Image.Resampling.BOX)) for p in photographs]
    rng = np.random.default_rng(21 if split == "train" else 22)
    count = PATCHES if split == "train" else TEST
    images, labels = np.zeros((count, 3, PATCH, PATCH), np.uint8), np.zeros(count, np.int64)
    for i in range(count):
        photo, turn = int(rng.integers(len(small))), int(rng.integers(4))
        height, width = small[photo].shape[:2]
        border = int(0.8 * width)
        left = rng.integers(0, border - PATCH) if split == "train" else rng.integers(border, width - PATCH)
        top = rng.integers(0, height - PATCH)
        patch = np.rot90(small[photo][top : top + PATCH, left : left + PATCH], turn)
        images[i] = np.moveaxis(patch, -1, 0)
        labels[i] = 4 * photo + turn
    names = tuple(f"{photo} turned {90 * turn}" for photo in ("china", "flower") for turn in range(4))
    return Dataset("patches-12", _scaled(images), labels, names, "CC BY", "scikit-learn's sample images")


DATA = {"fashion": fashion, "glyphs": glyphs, "patches": patches}
