"""The image grids that a study published, found by their names alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fewstep.dashboards.web.places import Entry

_CAPTIONS = {"images.png": "found, stock and teacher on the same noise", "grid.png": "edits by strength"}
_FOUND = re.compile(r"nfe(\d+)\.png")


@dataclass(frozen=True)
class Picture:
    """One file; `name` stands for it in addresses."""

    name: str
    caption: str
    path: Path


def pictures(entry: Entry) -> list[Picture]:
    """The overview first, then the found schedules' by NFE; those that are there."""
    found = [Picture(name, text, entry.folder / name) for name, text in _CAPTIONS.items()]
    inside = entry.folder / "schedules"
    numbers = sorted((int(m[1]), p) for p in inside.glob("nfe*.png") if (m := _FOUND.fullmatch(p.name)))
    found += [Picture(path.name, f"found, {nfe} calls", path) for nfe, path in numbers]
    return [picture for picture in found if picture.path.is_file() and _is_own(entry, picture.path)]


def _is_own(entry: Entry, path: Path) -> bool:
    """Whether it lies in the study's folder, and no link leads out of it."""
    return path.resolve().is_relative_to(entry.folder.resolve())


def pairs(found: list[Picture]) -> list[Picture]:
    """Those that may be laid over one another: the same noise in the same places."""
    return [picture for picture in found if _FOUND.fullmatch(picture.name)]
