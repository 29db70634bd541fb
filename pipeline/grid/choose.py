"""Which cells of a grid are asked for: `--only`, by patterns and values of axes, and `--shard`, one part of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fewstep.errors import ConfigurationError
from fewstep.pipeline.grid.cells import Cell, Cells, Group, shown
from fewstep.pipeline.grid.settings import AXES


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1. All parts together are the grid, and no two share an evaluation."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/8`; ConfigurationError for what is none."""
        first, slash, last = text.partition("/")
        if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise ConfigurationError(f"shard {text!r} is not possible: write PART/PARTS, as 3/8, from 1/8 to 8/8")
        return cls(int(first), int(last))

    @property
    def folder(self) -> str:
        """Where its tables lie, beneath the grid's folder."""
        return f"{self.number}-of-{self.count}"

    def keys(self, calls: Mapping[str, int]) -> set[str]:
        """Its evaluations of all of the grid's, whose denoiser calls are given: dealt out by them, so that parts cost
        alike."""
        return set(sorted(calls, key=lambda key: calls[key])[self.number - 1 :: self.count])


def chosen(cells: Cells, only: Sequence[str]) -> Cells:
    """The cells that patterns of names or AXIS=VALUE select.

    One of the patterns must match, and one of the values of each axis that is named; a value may be a pattern, several
    are comma-separated. ConfigurationError for an axis that is none, and where something selects nothing.
    """
    named = [text for text in only if not _axis(text)]
    valued: dict[str, list[str]] = {}
    for text in only:
        if axis := _axis(text):
            valued.setdefault(axis, []).extend(part.strip() for part in text.partition("=")[2].split(","))
    everything = list(cells)
    for pattern in named:
        if not any(fnmatchcase(cell.name, pattern) for cell in everything):
            raise ConfigurationError(f"--only {pattern} matches no cell: cells are named as {everything[0].name}")
    for axis, patterns in valued.items():
        there = list(dict.fromkeys(shown(cell.axes[axis]) for cell in everything))
        for pattern in patterns:
            if not any(fnmatchcase(value, pattern) for value in there):
                raise ConfigurationError(f"--only {axis}={pattern} matches no cell: {axis} is {', '.join(there)}")

    def selects(cell: Cell) -> bool:
        axes: Mapping[str, str] = {axis: shown(value) for axis, value in cell.axes.items()}
        by_value = all(any(fnmatchcase(axes[axis], p) for p in patterns) for axis, patterns in valued.items())
        return by_value and (not named or any(fnmatchcase(cell.name, pattern) for pattern in named))

    groups = [Group(g.subject, g.teacher, [cell for cell in g.cells if selects(cell)]) for g in cells.groups]
    left = Cells([group for group in groups if group.cells], cells.left_out)
    if not left.groups:
        raise ConfigurationError(f"--only {' '.join(only)} together match no cell: leave one of them out")
    return left


def _axis(text: str) -> str:
    """The axis of AXIS=VALUE, empty for a pattern; ConfigurationError for a name that is no axis."""
    name, equals, _ = text.partition("=")
    if not equals or "/" in name or "*" in name:
        return ""
    if name not in AXES:
        raise ConfigurationError(f"--only {text}: {name!r} is no axis, choose one of {', '.join(AXES)}")
    return name
