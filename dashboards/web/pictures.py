"""The image grids that a study published, found by their names alone, and its edit's pictures by strength."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from fewstep.dashboards.web.places import Entry
from fewstep.errors import FewstepError
from fewstep.files import read_json

_CAPTIONS = {"images.png": "found, stock and teacher on the same noise", "grid.png": "edits by strength"}
_STRENGTH = re.compile(r"strength-\d+\.png")
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


@dataclass(frozen=True)
class Strip:
    """Pictures of an edit by strength, from the lowest on; `own` is the strength that was found."""

    pictures: list[tuple[float, Picture]]
    own: float

    @property
    def begin(self) -> int:
        """Place of the picture nearest to the own strength."""
        return min(range(len(self.pictures)), key=lambda place: abs(self.pictures[place][0] - self.own))


def strip_of(entry: Entry) -> Strip | None:
    """What a search of edits wrote; None where there are fewer than two pictures."""
    folder, found = entry.folder / "strengths", list[tuple[float, Picture]]()
    try:
        told = read_json(folder / "strengths.json")
        own = float(told["own"])
        for strength, name in zip(told["strengths"], told["files"], strict=True):
            path = folder / name
            if _STRENGTH.fullmatch(name) and math.isfinite(strength) and path.is_file() and _is_own(entry, path):
                found.append((float(strength), Picture(name, f"strength {strength:.2g}", path)))
    except (FewstepError, OSError, KeyError, TypeError, ValueError):
        return None  # another version's, or half written
    return Strip(sorted(found, key=lambda pair: pair[0]), own) if len(found) > 1 else None
