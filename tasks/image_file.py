"""What the numbers of an image file mean, and how an image of any size becomes one of the model's.

Pixels are float32 (C, H, W) in [-1, 1], taken as they are stored: 0 is -1, the deepest value of the image's own depth
(255 of 8 bits, 65535 of 16) is 1. 16-bit colour is read to its upper 8 bits, as Pillow does. A colour profile is not
applied and a mark of EXIF to turn the image not followed; such images are counted. What has no one meaning is refused
with its name: transparent pixels, several frames, values without a range (floating point, 32 bits, signed).

An image of another size is brought to the model's by RULE; one that has it already keeps every bit.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.float32]
# A file, the bytes of one, or pixels of 8 bits (H, W) or (H, W, C).
Stored = Path | bytes | npt.NDArray[np.uint8]
# Named in whatever is addressed by its content; Pillow's bicubic filter widens with the reduction, so nothing aliases.
RULE = "short side by Pillow's bicubic filter in floating point, clipped, centre cropped"

# Pillow takes a file for what it holds, and may run other programs for what it holds: only these are tried.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
# TIFF's tags; EXIF's orientation is one of them.
BITS, PHOTOMETRIC, ORIENTATION, PLANES, COLOURS, SAMPLE_FORMAT = 258, 262, 274, 284, 320, 339
TURNED = range(2, 9)
DARK = 4096  # One above the deepest value of a 12-bit camera or scan.


def read_image(stored: Stored, channels: int, size: int, notes: Counter[str] | None = None, name: str = "") -> Pixels:
    """One image as (channels, size, size) in [-1, 1]; 1 channel is grey. Counts in `notes` what was not applied.

    Raises DataError, which names the file or `name`, where it cannot be read or has no one meaning.
    """
    return fitted(read_levels(stored, channels, notes, name, size), size).transpose(2, 0, 1) / 127.5 - 1.0


def read_levels(
    stored: Stored, channels: int, notes: Counter[str] | None = None, name: str = "", size: int | None = None
) -> Pixels:
    """The same image as it is, (H, W, channels) from 0 to 255; `size` is only for what is counted in `notes`."""
    name = name or str(stored)
    try:
        with _opened(stored) as image:
            wrong = _unclear(image)
            if wrong is None:
                image.load()
                wrong = _see_through(image)
            levels = _levels(image, channels) if wrong is None else None
            if notes is not None and levels is not None:
                notes.update(_not_applied(image))
                if size is not None:
                    notes.update(_refitted(image, size))
    # Decoders answer damaged bytes with whatever breaks first: SyntaxError, struct.error, KeyError, ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"cannot read {name}: {reason}; remove it or replace it") from error
    if levels is None:
        raise DataError(f"{name} {wrong}")
    return levels.reshape(*levels.shape[:2], channels)


def fitted(levels: Pixels, size: int) -> Pixels:
    """Levels (H, W, C), 0 to 255, brought to (size, size, C) by RULE."""
    from PIL import Image

    height, width = levels.shape[:2]
    if (height, width) == (size, size):
        return levels
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    # The filter also sees what lies beside the box, so that this is resizing the whole and cropping it then.
    box = (left, top, left + short, top + short)
    bands = [
        Image.fromarray(np.ascontiguousarray(levels[..., c])).resize((size, size), Image.Resampling.BICUBIC, box)
        for c in range(levels.shape[2])
    ]
    return np.stack([np.asarray(band) for band in bands], -1).clip(0, 255)


def pasted(levels: Pixels, seen: Pixels, edited: Pixels) -> npt.NDArray[np.uint8]:
    """An image's own levels (H, W, C) with what an edit changed of it, as (H, W, C) of 8 bits.

    `seen` and `edited` (C, size, size) in [-1, 1] are the image as the model saw it and what was made of that. Their
    difference is enlarged onto the square that was seen: what is finer than the model's pixels stays the image's own.
    """
    from PIL import Image

    height, width = levels.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    change = (edited - seen).astype(np.float32) * 127.5
    bands = [np.asarray(Image.fromarray(band).resize((short, short), Image.Resampling.BICUBIC)) for band in change]
    made = levels.copy()
    made[top : top + short, left : left + short] += np.stack(bands, -1)
    rounded: npt.NDArray[np.uint8] = np.rint(made.clip(0, 255)).astype(np.uint8)
    return rounded


def _opened(stored: Stored) -> Image.Image:
    from PIL import Image

    if isinstance(stored, np.ndarray):
        return Image.fromarray(stored[..., 0] if stored.ndim == 3 and stored.shape[2] == 1 else stored)
    return Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored, formats=FORMATS)


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow's remarks on odd files would stand between our own lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _deep(image: Image.Image) -> bool:
    """Whether it is grey with 16 bits. Older versions of Pillow open such a PNG as 32-bit integers."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _unclear(image: Image.Image) -> str | None:
    """What of an image that was opened has no one meaning."""
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        return f"holds {frames} frames: save one picture a file"
    if image.mode not in MODES and not _deep(image):
        return f"has pixels of mode {image.mode}, which say no range or colour: save it with 8 or 16 bits"
    if not _whole(image):
        return "does not hold every part of the image: save it again"
    return _unclear_tiff(image) if image.format == "TIFF" else None


def _whole(image: Any) -> bool:
    """Whether the parts that the file names cover the image; some formats name none."""
    parts = [(codec, (x1 - x0) * (y1 - y0)) for codec, (x0, y0, x1, y1), *_ in getattr(image, "tile", ())]
    apart = image.format == "TIFF" and image.tag_v2.get(PLANES) == 2 and all(codec != "libtiff" for codec, _ in parts)
    layers = len(image.getbands()) if apart else 1
    return not parts or sum(area for _, area in parts) >= image.width * image.height * layers


def _unclear_tiff(image: Any) -> str | None:
    """What of a TIFF Pillow would read as something else without a word."""
    tags = image.tag_v2
    bits = tuple(tags.get(BITS, (1,)))
    if any(kind not in (1, 4) for kind in tags.get(SAMPLE_FORMAT, (1,))):
        return "holds signed or floating-point values: save it with 8 or 16 unsigned bits"
    if _deep(image) and (bits != (16,) or tags.get(PHOTOMETRIC) != 1):
        return "is deep grey of which 0 is white, or which is not of 16 bits: save it with 16 bits, 0 as black"
    if tags.get(ORIENTATION) in TURNED:
        return "is stored turned or mirrored: save it upright"
    if 0 < max(tags.get(COLOURS, (0,))) < 256:
        return "has a palette of 8 bits where TIFF has 16: save it again"
    if tags.get(PLANES) == 2 and set(bits) != {8}:
        return "holds its colours one after the other in other than 8 bits: save them pixel by pixel"
    return None


def _see_through(image: Image.Image) -> str | None:
    """Whether some pixel of a loaded image is not opaque: what lies behind it is not said."""
    key = image.info.get("transparency")
    if (alpha := image.getbands()[-1]) in ("A", "a"):
        clear = int((np.asarray(image.getchannel(alpha)) < 255).sum())
    elif key is None:
        return None
    elif image.mode != "P":
        return "says that one of its colours is transparent: save it without transparency"
    elif isinstance(key, bytes):
        table = np.full(256, 255)
        table[: len(key)] = np.frombuffer(key, np.uint8)[:256]
        clear = int((table[np.asarray(image)] < 255).sum())
    else:
        clear = int((np.asarray(image) == key).sum())
    if not clear:
        return None
    return f"has {clear:,} pixels that are not opaque: paint it on the background that it belongs on"


def _levels(image: Image.Image, channels: int) -> Pixels:
    """The pixels (H, W) or (H, W, channels), 0 to 255."""
    if _deep(image):
        # 65535 is 257 times 255: an 8-bit picture that was widened comes back exactly.
        grey = np.asarray(image).astype(np.float32) / np.float32(257)
        return np.repeat(grey[..., None], channels, axis=-1)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    return np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32)


def _not_applied(image: Image.Image) -> Iterator[str]:
    profile = image.info.get("icc_profile")
    if profile and b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile:
        yield "with a colour profile that is not applied"
    if "exif" in image.info and image.getexif().get(ORIENTATION) in TURNED:
        yield "that EXIF says to turn, read as stored"
    if _deep(image) and np.asarray(image).max() < DARK:
        yield f"of 16 bits without a value above {DARK - 1}, read as dark"


def _refitted(image: Image.Image, size: int) -> Iterator[str]:
    if image.size != (size, size):
        yield "resized and cropped" if min(image.size) >= size else "smaller than the model's, enlarged and cropped"
