"""An image's pixels are what its file means, whatever its kind; what has no one meaning is refused by name."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from fewstep.errors import DataError
from fewstep.tasks.image_file import pasted, read_image

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (8, 8), dtype=np.uint8)
COLOUR = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
WIDE = GREY.astype(np.uint16) * 257
PALETTE = Image.fromarray(COLOUR).quantize(20)


def pixels(levels: Any) -> np.ndarray:
    """(C, 8, 8) in [-1, 1] of levels 0 to 255."""
    array = np.asarray(levels, np.float32)
    return (array[None] if array.ndim == 2 else array.transpose(2, 0, 1)) / 127.5 - 1


def png(values: np.ndarray, depth: int, kind: int, more: bytes = b"") -> bytes:
    """A PNG of any depth and colour type, which Pillow writes in part only."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
    transparency = chunk(b"tRNS", more) if more else b""
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + transparency + ends


def with_alpha(values: np.ndarray, alpha: int, depth: int = 8) -> np.ndarray:
    deepest = 255 if depth == 8 else 65535
    scaled = values.astype(np.int64) * (deepest // 255)
    shape = (8, 8, -1)
    clear = np.full((8, 8, 1), deepest)
    clear[0, 0] = alpha
    return np.concatenate([scaled.reshape(shape), clear], -1)


def tiff_with(path: Path, values: np.ndarray, **tags: int) -> None:
    """A TIFF with tags (by number) changed after it was written."""
    Image.fromarray(values).save(path)
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[at : at + 2])
    entries = {struct.unpack("<H", data[e : e + 2])[0]: e for e in range(at + 2, at + 2 + 12 * count, 12)}
    for tag, value in tags.items():
        entry = entries[int(tag[1:])]
        data[entry + 8 : entry + 10] = struct.pack("<H", value)
    path.write_bytes(bytes(data))


def planar_tiff(values: np.ndarray, bits: int, planes: int = 3) -> bytes:
    """A TIFF of colours that lie one after the other, of which only some `planes` are said to be there."""
    size = 64 * bits // 8
    data = b"".join(values[..., i].astype(f"<u{bits // 8}").tobytes() for i in range(3))
    tail = 8 + len(data) + 2 + 12 * 9 + 4
    lists = {258: ("H", 3, [bits] * 3), 273: ("I", 4, [8 + i * size for i in range(planes)])}
    more, entries = b"", []
    for tag, value in ((256, 8), (257, 8), (258, None), (259, 1), (262, 2), (273, None), (277, 3), (278, 8), (284, 2)):
        letter, kind, items = lists.get(tag, ("H", 3, [value]))
        packed = struct.pack(f"<{len(items)}{letter}", *items)
        at = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", tail + len(more))
        more += packed if len(packed) > 4 else b""
        entries.append(struct.pack("<HHI", tag, kind, len(items)) + at)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + more


def narrow_palette(path: Path) -> None:
    """A TIFF whose palette goes to 255, as 8 bits do, where 65535 is white."""
    PALETTE.save(path)
    with Image.open(path) as image:
        colours = np.asarray(image.tag_v2[320], "<u2")  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes().replace(colours.tobytes(), (colours // 256).tobytes()))


def small_frame(path: Path) -> None:
    """A GIF whose one frame fills a corner of its screen."""
    Image.fromarray(GREY).save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"\x2c\0\0\0\0\x08\0\x08\0")
    data[at + 5 : at + 9] = b"\x08\0\x04\0"
    path.write_bytes(bytes(data))


READ: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "grey.png": (lambda p: Image.fromarray(GREY).save(p), GREY),
    "16 bits.png": (lambda p: Image.fromarray(WIDE).save(p), GREY),
    "16 bits.tif": (lambda p: Image.fromarray(WIDE).save(p), GREY),
    "16 bits big-endian.tif": (lambda p: Image.fromarray(WIDE.astype(">u2")).save(p), GREY),
    "16 bits packed.tiff": (lambda p: Image.fromarray(WIDE).save(p, compression="tiff_lzw"), GREY),
    "16 bits.pgm": (lambda p: Image.fromarray(WIDE).save(p), GREY),
    "32 bits that hold 16.pgm": (lambda p: Image.fromarray(WIDE.astype(np.int32)).save(p), GREY),
    "white is zero.tif": (lambda p: tiff_with(p, GREY, t262=0), 255 - GREY),
    "16-bit colour.png": (lambda p: p.write_bytes(png(COLOUR.astype(int) * 257, 16, 2)), COLOUR),
    "16 bits opaque.png": (lambda p: p.write_bytes(png(with_alpha(GREY, 65535, 16), 16, 4)), GREY),
    "16-bit colour opaque.png": (lambda p: p.write_bytes(png(with_alpha(COLOUR, 65535, 16), 16, 6)), COLOUR),
    "opaque.png": (lambda p: p.write_bytes(png(with_alpha(COLOUR, 255), 8, 6)), COLOUR),
    "opaque.webp": (lambda p: Image.fromarray(COLOUR).convert("RGBA").save(p, lossless=True), COLOUR),
    "opaque.tif": (lambda p: Image.fromarray(COLOUR).convert("RGBA").save(p), COLOUR),
    "palette.png": (lambda p: PALETTE.save(p), PALETTE.convert("RGB")),
    "palette.gif": (lambda p: PALETTE.save(p), PALETTE.convert("RGB")),
    "palette without its transparent colour.png": (lambda p: PALETTE.save(p, transparency=200), PALETTE.convert("RGB")),
    "opaque palette.png": (lambda p: PALETTE.save(p, transparency=b"\xff" * 20), PALETTE.convert("RGB")),
    "ink.tif": (lambda p: Image.fromarray(COLOUR).convert("CMYK").save(p), COLOUR),
    "two levels.png": (lambda p: Image.fromarray(GREY > 99).save(p), (GREY > 99) * 255),
    "two levels.pbm": (lambda p: Image.fromarray(GREY > 99).save(p), (GREY > 99) * 255),
    "bitmap.bmp": (lambda p: Image.fromarray(COLOUR).save(p), COLOUR),
    "text.ppm": (lambda p: p.write_bytes(b"P3 8 8 255\n" + " ".join(map(str, COLOUR.ravel())).encode()), COLOUR),
    "planes.tif": (lambda p: p.write_bytes(planar_tiff(COLOUR, 8)), COLOUR),
    "one frame.webp": (lambda p: Image.fromarray(COLOUR).save(p, lossless=True, save_all=True), COLOUR),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", READ)
def test_what_a_file_means_is_read_at_its_own_depth(name: str, tmp_path: Path) -> None:
    write, levels = READ[name]
    write(tmp_path / name)
    expected = pixels(levels)
    found = read_image(tmp_path / name, len(expected), 8)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    if len(expected) == 1:
        assert np.array_equal(read_image(tmp_path / name, 3, 8), np.repeat(expected, 3, 0))


def test_deep_grey_keeps_more_than_255_levels(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) + 30000
    Image.fromarray(values).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 1, 8)
    np.testing.assert_allclose(found[0], values / 32767.5 - 1, atol=1e-6)
    assert len(np.unique(found)) == 64


def frames(path: Path, **options: Any) -> None:
    Image.fromarray(COLOUR).save(path, save_all=True, append_images=[Image.fromarray(COLOUR[::-1].copy())], **options)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "floats.tif": (lambda p: Image.fromarray(GREY.astype(np.float32)).save(p), "mode F"),
    "floats.ppm": (lambda p: Image.fromarray(GREY.astype(np.float32)).save(p, "PPM"), "mode F"),
    "32 bits.tif": (lambda p: Image.fromarray(WIDE.astype(np.int32)).save(p), "mode I"),
    "lab.tif": (lambda p: Image.merge("LAB", [Image.fromarray(GREY)] * 3).save(p), "mode LAB"),
    "signed.tif": (lambda p: Image.fromarray(GREY).save(p, tiffinfo={339: 2}), "signed"),
    "12 bits.tif": (lambda p: tiff_with(p, WIDE, t258=12), "not of 16 bits"),
    "deep white is zero.tif": (lambda p: tiff_with(p, WIDE, t262=0), "0 is white"),
    "deep planes.tif": (lambda p: p.write_bytes(planar_tiff(COLOUR.astype(int) * 257, 16)), "one after the other"),
    "missing planes.tif": (lambda p: p.write_bytes(planar_tiff(COLOUR, 8, 1)), "every part"),
    "small frame.gif": (small_frame, "every part"),
    "narrow palette.tif": (narrow_palette, "palette of 8 bits"),
    "turned.tif": (lambda p: Image.fromarray(GREY).save(p, tiffinfo={274: 6}), "turned"),
    "frames.gif": (frames, "2 frames"),
    "frames.webp": (frames, "2 frames"),
    "frames.png": (frames, "2 frames"),
    "frames.tif": (frames, "2 frames"),
    "clear.png": (lambda p: p.write_bytes(png(with_alpha(COLOUR, 254), 8, 6)), "1 pixels that are not opaque"),
    "clear grey.png": (lambda p: p.write_bytes(png(with_alpha(GREY, 0), 8, 4)), "1 pixels that are not opaque"),
    "clear 16 bits.png": (lambda p: p.write_bytes(png(with_alpha(GREY, 300, 16), 16, 4)), "not opaque"),
    "clear.tif": (lambda p: Image.fromarray(with_alpha(COLOUR, 9).astype(np.uint8)).save(p), "not opaque"),
    "clear.webp": (lambda p: Image.fromarray(with_alpha(COLOUR, 9).astype(np.uint8)).save(p), "not opaque"),
    "clear palette.png": (lambda p: PALETTE.save(p, transparency=3), "not opaque"),
    "half clear palette.png": (lambda p: PALETTE.save(p, transparency=b"\xff" * 19 + b"\x09"), "not opaque"),
    "clear palette.gif": (lambda p: PALETTE.save(p, transparency=3), "not opaque"),
    "clear colour.png": (lambda p: p.write_bytes(png(GREY, 8, 0, struct.pack(">H", 7))), "one of its colours"),
    "clear deep.png": (lambda p: p.write_bytes(png(WIDE, 16, 0, struct.pack(">H", 7))), "one of its colours"),
    "empty.png": (lambda p: p.write_bytes(b""), "cannot read"),
    "text.png": (lambda p: p.write_text("not an image"), "cannot read"),
    "script.png": (lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"), "cannot read"),
    "cut.png": (lambda p: p.write_bytes(png(GREY, 8, 0)[:60]), "cannot read"),
    "short head.png": (lambda p: p.write_bytes(png(GREY, 8, 0)[:8] + b"\0\0\0\x04IHDR" + bytes(8)), "cannot read"),
    "broken chunk.png": (lambda p: p.write_bytes(png(GREY, 8, 0)[:33] + b"\0\0\0\x04\1\1\2\3" * 3), "cannot read"),
    "flipped.png": (lambda p: p.write_bytes(png(GREY, 8, 0).replace(b"IDAT", b"IDBT")), "cannot read"),
    "bomb.png": (lambda p: p.write_bytes(png(np.zeros((1, 40000)), 8, 0).replace(b"\0\0\0\1", b"\0\0\x9c\x40", 1)), ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_one_meaning_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    write, words = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(DataError) as refused:
        read_image(tmp_path / name, 1, 8)
    assert str(tmp_path / name) in str(refused.value)
    assert words in str(refused.value)


def test_what_is_not_applied_is_counted(tmp_path: Path) -> None:
    image, notes = Image.fromarray(GREY), Counter[str]()
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "srgb.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    image.save(tmp_path / "xyz.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes())
    Image.fromarray(GREY.astype(np.uint16) * 16).save(tmp_path / "scan.png")
    for path in sorted(tmp_path.iterdir()):
        read_image(path, 1, 8, notes)
    assert sorted(notes.values()) == [1, 1, 1]
    for words in ("EXIF", "colour profile", "16 bits"):
        assert any(words in note for note in notes)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", 1, 8), pixels(GREY))


def test_an_edit_that_changes_nothing_leaves_every_bit_of_a_larger_image() -> None:
    levels = rng.integers(0, 256, (30, 41, 3)).astype(np.float32)
    seen = rng.uniform(-1, 1, (3, 8, 8)).astype(np.float32)
    assert (pasted(levels, seen, seen) == levels).all()
    brighter = pasted(np.full_like(levels, 100), seen, seen + 0.2).astype(int)
    assert (brighter[:, 5:35] == round(100 + 0.2 * 127.5)).all()
    assert (brighter[:, :5] == 100).all()
    assert (brighter[:, 35:] == 100).all()
