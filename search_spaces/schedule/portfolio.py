"""A portfolio: schedules that were found on some models, as something to begin with on another one.

What a good schedule decides carries over further than its figures do: times are kept as lambda, the noise that an image
of usual range has, whatever the model. An entry is placed on a model in two ways. `kept` leaves its times as they are,
but for the first, which is where the model's noise begins; `stretched` moves them from the range of the model that it
was found on to that of the other. Corrections, guidance, skip factors and thresholds belong to a model and stay there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError
from pydantic import model_validator as check

from fewstep.errors import DataError
from fewstep.files import read_text
from fewstep.search_spaces.checked import first_problem
from fewstep.search_spaces.schedule.formula import Part
from fewstep.search_spaces.schedule.solver import SolverSchedule

# The shortest step that a placed schedule has, and how far a time may be moved for it.
SHORTEST, FARTHEST = 0.05, 0.5
SAME_START = 1e-3
_OF_A_MODEL = ("corrections", "guidance", "skips", "threshold", "provenance")


class Entry(Part):
    """A schedule, the model that it was found on, and from where to where the lambdas of that one go."""

    name: str
    model: str
    model_hash: str
    noise_range: tuple[float, float]
    schedule: SolverSchedule

    @property
    def is_portable(self) -> bool:
        """Whether it needs nothing that is measured of a model, nor starts at lambda = -inf."""
        return not self.schedule.needs_statistics and math.isfinite(self.schedule.lambdas[0])

    def placed(self, start: float, end: float) -> dict[str, SolverSchedule]:
        """The schedule on a model whose lambdas go from `start` to `end`, by way; equal ones once."""
        found: dict[str, SolverSchedule] = {}
        for way in ("kept", "stretched"):
            lambdas = spaced(self._moved(way, start, end))
            if lambdas is None:
                continue
            fields = {k: v for k, v in dict(self.schedule).items() if k not in _OF_A_MODEL}
            schedule = SolverSchedule.build(**fields | {"lambdas": lambdas, "name": f"{self.name}/{way}"})
            if schedule.hash not in (known.hash for known in found.values()):
                found[way] = schedule
        return found

    def _moved(self, way: str, start: float, end: float) -> list[float]:
        low, high = self.noise_range
        times = self.schedule.lambdas
        if way == "stretched":
            return [start + (v - low) * (end - start) / (high - low) if math.isfinite(v) else v for v in times]
        first = start if abs(times[0] - low) <= SAME_START else max(start, times[0])
        # Some go a little beyond where their own model's range ends.
        last = end + max(0.0, *(v - high for v in times if math.isfinite(v)))
        return [first, *(v if math.isinf(v) else min(v, last) for v in times[1:])]


def spaced(lambdas: Sequence[float]) -> tuple[float, ...] | None:
    """The same with no step shorter than SHORTEST; None where that would move a time far."""
    found = [lambdas[0]]
    for value in lambdas[1:]:
        found.append(max(value, found[-1] + SHORTEST))
        if found[-1] - value > FARTHEST:
            return None
    return tuple(found)


class Portfolio(Part):
    """Entries, each with a name of its own."""

    schema_version: Literal[1] = 1
    entries: tuple[Entry, ...] = Field(min_length=1)

    @check(mode="after")
    def _names_are_their_own(self) -> Self:
        twice = [name for name, count in Counter(entry.name for entry in self.entries).items() if count > 1]
        if twice:
            raise ValueError(f"entries share the name {twice[0]!r}")
        return self

    def for_model(self, model_hash: str, nfe: int, start: float, end: float) -> Mapping[str, SolverSchedule]:
        """Schedules of `nfe` calls for a model, by name, without those that were found on it: they prove nothing."""
        entries = [e for e in self.entries if e.schedule.nfe == nfe and e.is_portable and e.model_hash != model_hash]
        return {s.name: s for entry in entries for s in entry.placed(start, end).values()}


def load_portfolio(path: str | Path) -> Portfolio:
    """Read a portfolio; DataError where the file is none."""
    text = read_text(path, "portfolio", DataError)
    try:
        return Portfolio.model_validate_json(text)
    except ValidationError as error:
        raise DataError(
            f"{path} is no portfolio of schedules: {first_problem(error)}; make one with `fewstep schedule collect`"
        ) from None
