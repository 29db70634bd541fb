"""Whatever bytes lie in a folder of images: the picture that they hold, or a DataError that names the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.errors import DataError
from fewstep.tasks.data import load_image_folder
from fewstep.tasks.image_folder import SUFFIXES

Damage = Callable[[st.DataObject, bytes], bytes]
SIZE = 6
# A format that keeps values, its options, and whether every byte of it is under a checksum.
KEPT: dict[str, tuple[str, dict[str, Any], bool]] = {
    ".png": ("PNG", {}, True),
    ".bmp": ("BMP", {}, False),
    ".tif": ("TIFF", {}, False),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}, False),
    ".webp": ("WEBP", {"lossless": True}, False),
    ".ppm": ("PPM", {}, False),
    ".gif": ("GIF", {}, False),
}
# Mode -> type of its values, and channels.
MODES: dict[str, tuple[Any, int]] = {"L": (np.uint8, 1), "RGB": (np.uint8, 3), "I;16": (np.uint16, 1)}
DEEP = (".png", ".tif", ".tiff", ".ppm")


@st.composite
def pictures(draw: st.DrawFn) -> tuple[str, bytes, np.ndarray]:
    """A suffix, a file's bytes, and the picture (SIZE, SIZE, C) in [-1, 1] that it holds."""
    suffix = draw(st.sampled_from(sorted(KEPT)))
    mode = draw(st.sampled_from(sorted(MODES) if suffix in DEEP else ["L", "RGB"]))
    kind, channels = MODES[mode]
    shape = (SIZE, SIZE, channels)
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, np.iinfo(kind).max + 1, shape, kind)
    form, options, _ = KEPT[suffix]
    file = io.BytesIO()
    Image.fromarray(values[..., 0] if channels == 1 else values).save(file, form, **options)
    return suffix, file.getvalue(), values / (np.iinfo(kind).max / 2) - 1


def read(folder: Path, name: str, content: bytes, channels: int = 3) -> np.ndarray | None:
    """What a folder with that one file is read as, None where it is refused."""
    path = folder / name
    path.write_bytes(content)
    refused = ""
    try:
        found = load_image_folder(folder, channels, SIZE)
    except DataError as error:
        refused = str(error)
    finally:
        path.unlink()
    if refused:
        assert str(path) in refused
        return None
    assert found.shape == (1, channels, SIZE, SIZE)
    assert np.isfinite(found).all()
    assert found.min() >= -1
    assert found.max() <= 1
    return np.moveaxis(found[0], 0, -1)


@given(picture=pictures())
def test_a_whole_picture_is_read_as_what_it_is(picture: tuple[str, bytes, np.ndarray], tmp_path: Path) -> None:
    suffix, content, values = picture
    found = read(tmp_path, f"a{suffix}", content)
    assert found is not None
    np.testing.assert_allclose(found, np.broadcast_to(values, found.shape), atol=1e-6)


# Modes that each format keeps as they are.
SAVED = {
    ".png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    ".tif": ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "I;16B"),
    ".bmp": ("1", "L", "P", "RGB"),
    ".webp": ("RGB", "RGBA"),
    ".pgm": ("1", "L", "RGB", "I", "F", "I;16"),
}


@given(
    place=st.sampled_from([(suffix, mode) for suffix, modes in SAVED.items() for mode in modes]),
    size=st.tuples(st.integers(SIZE - 1, SIZE + 1), st.integers(SIZE - 1, SIZE + 1)) | st.just((SIZE, SIZE)),
    seed=st.integers(0, 2**32 - 1),
    clear=st.booleans(),
)
def test_any_mode_and_size_is_read_as_it_is_shown_or_refused(
    place: tuple[str, str], size: tuple[int, int], seed: int, clear: bool, tmp_path: Path
) -> None:
    suffix, mode = place
    rng = np.random.default_rng(seed)
    if mode.startswith("I;16"):
        deep = rng.integers(0, 65536, size[::-1], np.uint16)
        image = Image.fromarray(deep.astype(">u2" if mode == "I;16B" else "<u2"))
        shown = np.repeat(deep[..., None] / 257, 3, -1)
    else:
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), np.uint8))
        if not clear:
            image.putalpha(255)
        through = "RGB" if mode in ("P", "LAB", "YCbCr", "CMYK") else "RGBA"
        image = image.convert(through).convert(mode)
        shown = None if mode in ("LAB", "I", "F") else np.asarray(image.convert("RGB"), np.float64)
        if mode == "I" and suffix == ".pgm":
            shown = np.repeat(np.asarray(image)[..., None] / 257, 3, -1)  # A 16-bit file.
    file = io.BytesIO()
    image.save(file, {".pgm": "PPM", ".tif": "TIFF"}.get(suffix, suffix[1:].upper()), **KEPT.get(suffix, ("", {}))[1])
    found = read(tmp_path, f"a{suffix}", file.getvalue())
    right = shown is not None and not (mode in ("LA", "RGBA") and clear)
    assert (found is not None) == right
    if found is not None and size == (SIZE, SIZE):
        np.testing.assert_allclose(found, shown / 127.5 - 1, atol=1e-6)


@given(data=st.data(), picture=pictures())
def test_a_damaged_picture_is_refused_or_read_within_its_range(
    data: st.DataObject, picture: tuple[str, bytes, np.ndarray], damaged: Damage, tmp_path: Path
) -> None:
    suffix, content, values = picture
    found = read(tmp_path, f"a{suffix}", damaged(data, content))
    if found is not None and KEPT[suffix][2]:
        np.testing.assert_allclose(found, np.broadcast_to(values, found.shape), atol=1e-6)


@given(data=st.data(), picture=pictures())
def test_a_picture_that_is_cut_off_is_no_other_picture(
    data: st.DataObject, picture: tuple[str, bytes, np.ndarray], tmp_path: Path
) -> None:
    suffix, content, values = picture
    found = read(tmp_path, f"a{suffix}", content[: data.draw(st.integers(0, len(content) - 1))])
    if found is not None:
        np.testing.assert_allclose(found, np.broadcast_to(values, found.shape), atol=1e-6)


@given(
    content=st.binary(max_size=300),
    head=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"P5 6 6 "]
    ),
    suffix=st.sampled_from(SUFFIXES),
    channels=st.sampled_from([1, 3]),
)
def test_arbitrary_bytes_are_refused_or_a_picture(
    content: bytes, head: bytes, suffix: str, channels: int, tmp_path: Path
) -> None:
    read(tmp_path, f"a{suffix}", head + content, channels)
