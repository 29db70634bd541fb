"""Files that are given by a pattern: one file, shards by `*`, `?`, `[...]` or `{000..012}`, or a folder's."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from fewstep.errors import DataError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# A folder's files that begin with different ones of these hold different parts of the data.
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")


def matches(place: str, suffixes: tuple[str, ...], inside: tuple[str, ...] = ("",)) -> list[Path]:
    """The files with one of the suffixes that a pattern names, in name order, or those of a folder, or in `inside` it.

    DataError where a folder's are of several splits, or where one of a range is not there.
    """
    if os.path.isdir(place):
        for within in inside:
            found = [p for p in sorted(Path(place, within).glob("*")) if p.name.lower().endswith(suffixes)]
            if found := [p for p in found if not p.name.startswith(".")]:
                return _of_one_split(place, found)
        return []
    if not place.lower().endswith(suffixes):
        return []
    if range_ := RANGE.search(place):
        first, last = range_.groups()
        numbers = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
        named = [Path(place[: range_.start()] + n + place[range_.end() :]) for n in numbers]
        if absent := [path for path in named if not path.is_file()]:
            raise DataError(f"{absent[0]} is not there, which {place} names: give the shards that are")
        return named
    if os.path.isfile(place):
        return [Path(place)]
    return sorted(Path(path) for path in glob.glob(place))


def _of_one_split(place: str, files: list[Path]) -> list[Path]:
    starts = {re.split(r"[-_.]", path.name.lower())[0] for path in files}
    if len(starts) > 1 and (splits := sorted(starts & set(SPLITS))):
        pattern = files[0].parent / f"{splits[-1]}*{files[0].suffix}"
        raise DataError(
            f"{place} holds several parts of the data ({', '.join(sorted(starts))}): give one, as {pattern}"
        )
    return files
