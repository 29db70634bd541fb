"""The images of a folder: which files are read, and what is said of the others.

Every regular file that ends with one of SUFFIXES is an image, in any depth, hidden or not, links followed. What is
left out is counted by kind, in one line on the log.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fewstep.errors import DataError

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Begins what a Mac puts beside an image, with the image's name after `._`: the image's attributes.
APPLE_DOUBLE = b"\x00\x05\x16\x07"
NAMED = 6

_log = logging.getLogger(__name__)


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, in name order. What else is there, hidden folders included, is said to be skipped."""
    entries = listed(folder)
    folders = [folder / entry.name for entry in entries if _is(entry, "dir") and not entry.name.startswith(".")]
    skipped = Counter(kind_of(entry.name) for entry in entries if folder / entry.name not in folders)
    if skipped:
        tell(f"{folder}: {skipped.total()} entries beside the classes' folders skipped: {counted(skipped)}")
    return folders


@cache
def tell(line: str) -> None:
    """Say something about what was read, once, as the log's warning."""
    _log.warning(line)


def counted(kinds: Mapping[str, int]) -> str:
    """`10 .txt, 2 .json`, the most frequent first."""
    ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    shown = [f"{count} {kind}" for kind, count in ordered[:NAMED]]
    rest = sum(count for _, count in ordered[NAMED:])
    return ", ".join([*shown, f"{rest} others"] if rest else shown)


@dataclass
class Found:
    """Images beneath a folder, in name order, and how many files of which kind are none."""

    images: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    cycles: int = 0


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in name order; DataError where it is none or may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except NotADirectoryError:
        raise DataError(f"{folder} is not a folder: give a folder of images") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the folder {folder}: {reason}") from None


def kind_of(name: str) -> str:
    """How a file that is no image is counted: by its suffix."""
    return Path(name).suffix.lower() or (name if name.startswith(".") else "without a suffix")


def find_images(folder: Path) -> Found:
    """The images beneath `folder`. DataError where a folder or a file there cannot be read."""
    found = Found()
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while pending:
        place, above = pending.pop()
        entries = listed(place)
        status = place.stat()
        here = status.st_dev, status.st_ino
        if here in above:
            found.cycles += 1
            continue
        for entry in entries:
            path = place / entry.name
            if _is(entry, "dir"):
                pending.append((path, above | {here}))
            elif path.suffix.lower() not in SUFFIXES or _is_apples(path):
                found.skipped[kind_of(entry.name) if os.path.exists(path) else "links to nothing"] += 1
            elif _is(entry, "file"):
                found.images.append(path)
            else:
                raise DataError(f"{path} is a link to nothing, or no regular file: remove it or replace it")
    found.images.sort()
    return found


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:  # A link to itself.
        return False


def _is_apples(path: Path) -> bool:
    if not path.name.startswith("._"):
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(APPLE_DOUBLE)) == APPLE_DOUBLE
    except OSError:
        return False
