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
from fewstep.tasks.image_folder import SUFFIXES, load_image_folder

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
