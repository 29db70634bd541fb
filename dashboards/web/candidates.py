"""Candidates one by one: what they decide, how they were judged, and in what two of them differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from fewstep.dashboards.picture import LANES, extras, time_text, words
from fewstep.dashboards.results import FINALS, JUDGE, REPORT, SCREEN
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Entry
from fewstep.errors import ConfigurationError
from fewstep.search_spaces.point import Point, parse_point, schedule_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.origins import FOUND, told_origin, tuned_from
from fewstep.storage.records import EvaluationRecord

# Of an edit's or a quantised network's JSON a line each; a schedule inside is drawn instead.
_DRAWN = ("schema_version", "steps", "lambdas", "provenance")
_HOLDS = {"quantization": "config", "edit": "edit", "ode": "solver"}


@dataclass(frozen=True)
class Candidate:
    """One candidate of a study, with everything that was recorded of it."""

    entry: Entry
    hash: str
    rows: list[EvaluationRecord]
    origin: str
    point: Point | None

    @property
    def nfe(self) -> int:
        """Denoiser calls an image."""
        return self.rows[0].nfe

    @property
    def schedule(self) -> SolverSchedule | None:
        """Its solver schedule, where it has one."""
        return schedule_of(self.point) if self.point else None

    @property
    def kind(self) -> str:
        """Of which space it is."""
        return self.point.kind if self.point else "unreadable"

    @property
    def key(self) -> str:
        """By which addresses name it."""
        return f"{self.entry.slug}:{self.hash}"

    @property
    def note(self) -> str:
        """What holds for all of its steps."""
        return extras(self.schedule) if self.schedule else ""

    @property
    def text(self) -> str:
        """Its JSON, to be copied: a schedule's as `fewstep sample --schedule` reads it."""
        if self.point is not None and self.point.kind == "schedule" and self.schedule:
            return self.schedule.to_json(indent=2)
        try:
            return json.dumps(json.loads(self.rows[0].candidate_json), indent=2, ensure_ascii=False)
        except ValueError:
            return self.rows[0].candidate_json

    @property
    def decisions(self) -> list[tuple[str, str]]:
        """(name, value) of what it decides besides the schedule: its quantisation, its edit."""
        if self.point is None:
            return []
        told = json.loads(self.rows[0].candidate_json)
        parts = [part.get(_HOLDS.get(part["kind"], "")) for part in told.get("members", [told])]
        return [line for part in parts if part is not None for line in _flat(part)]


@dataclass(frozen=True)
class Line:
    """One line of a comparison."""

    name: str
    first: str
    second: str

    @property
    def differs(self) -> bool:
        """Whether the two are not the same there."""
        return self.first != self.second


def candidate(columns: Columns, entry: Entry, hash_: str) -> Candidate:
    """The candidate of a hash; ConfigurationError where the study has none."""
    known = columns.frame(entry.store, entry.study, ["candidate"])["candidate"]
    rows = columns.rows(entry.store, entry.study, np.flatnonzero((known == hash_).to_numpy()).tolist())
    if not rows:
        raise ConfigurationError(f"study {entry.study!r} has no candidate {hash_!r}: take one from its trial table")
    return _candidate(columns, entry, rows)


def shown(columns: Columns, entry: Entry) -> list[Candidate]:
    """What was found, by NFE; before there is a report, the best of each NFE so far."""
    rows = columns.frame(entry.store, entry.study, ["rung", "status", "value", "nfe", "origin"])
    complete = (rows["status"] == "complete") & np.isfinite(rows["value"].astype(float))
    told = rows[complete & (rows["rung"] == REPORT)]
    found = told[[str(origin).startswith(FOUND[:-1]) for origin in told["origin"]]]
    if found.empty:
        rung = next((n for n in (FINALS, JUDGE, SCREEN) if (complete & (rows["rung"] == n)).any()), REPORT)
        at = rows[complete & (rows["rung"] == rung)]
        found = at.loc[at.groupby("nfe")["value"].idxmin()]
    records = columns.rows(entry.store, entry.study, sorted(int(place) for place in found.index))
    known: dict[str, list[EvaluationRecord]] = {}
    for record in sorted(records, key=lambda r: (r.nfe, r.value or 0.0)):
        known.setdefault(record.candidate, []).append(record)
    return [_candidate(columns, entry, own) for own in known.values()]


def compared(first: Candidate, second: Candidate) -> list[Line]:
    """Step by step what each decides; of a longer one the further steps have nothing on the other side."""
    lines = [Line("kind", first.kind, second.kind), Line("NFE", str(first.nfe), str(second.nfe))]
    one, two = _steps(first.schedule), _steps(second.schedule)
    for i, (a, b) in enumerate(zip_longest(one, two), 1):
        for k, name in enumerate(("time", *LANES)):
            if (a or b) and any(text and text != "–" for text in (a and a[k], b and b[k])):
                lines.append(Line(f"step {i}: {name}", a[k] if a else "", b[k] if b else ""))
    ends = [time_text(c.schedule.lambdas[-1]) if c.schedule else "" for c in (first, second)]
    lines += [Line("end", *ends), Line("for all steps", first.note, second.note)]
    sides = dict(first.decisions), dict(second.decisions)
    lines += [
        Line(name, sides[0].get(name, ""), sides[1].get(name, "")) for name in dict.fromkeys([*sides[0], *sides[1]])
    ]
    return [line for line in lines if line.first or line.second]


def steps(schedule: SolverSchedule) -> list[tuple[str, ...]]:
    """A line a step: its time, and what is decided there."""
    return _steps(schedule)


def _steps(schedule: SolverSchedule | None) -> list[tuple[str, ...]]:
    if schedule is None:
        return []
    return [(time_text(schedule.lambdas[i]), *words(step)) for i, step in enumerate(schedule.steps)]


def _candidate(columns: Columns, entry: Entry, rows: Sequence[EvaluationRecord]) -> Candidate:
    try:
        point: Point | None = parse_point(rows[0].candidate_json)
    except ConfigurationError:
        point = None
    proposed = next((row.origin for row in rows if not row.of_report), rows[0].origin)
    return Candidate(
        entry, rows[0].candidate, list(rows), told_origin(proposed, _starts(columns, entry, proposed)), point
    )


def _starts(columns: Columns, entry: Entry, origin: str) -> dict[str, str]:
    """Origins by hash, of what a tuned candidate was tuned from, and that in turn."""
    found: dict[str, str] = {}
    start = tuned_from(origin)
    if not start:
        return found
    rows = columns.frame(entry.store, entry.study, ["candidate", "origin", "rung"])
    searched = rows["rung"] != REPORT
    while start and start not in found:
        own = rows["origin"][(rows["candidate"] == start) & searched]
        if own.empty:
            break
        found[start] = str(own.iloc[0])
        start = tuned_from(found[start])
    return found


def _flat(value: object, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [(prefix, value if isinstance(value, str) else json.dumps(value))]
    pairs = [(f"{prefix}.{name}" if prefix else name, inner) for name, inner in value.items() if name not in _DRAWN]
    return [line for name, inner in pairs for line in _flat(inner, name)]
