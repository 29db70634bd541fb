"""What a study did, in words and counts: the text of its page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from fewstep.dashboards.results import JUDGE, REPORT
from fewstep.storage.records import BUSY, MEASURED, REFIT, EvaluationRecord, EventRecord, StudyRecord
from fewstep.storage.store import Store

MESSAGES = 50
"""Events told one by one; the newest of them where there are more."""

ROUTINE = (REFIT, BUSY)
"""Kinds of events that are only counted."""

FRECHET = "Fréchet distance"
_RUNGS = {"presets": "presets: first look"}
_RUNGS |= {"distance": "screen: distance to the teacher", "look": f"screen: {FRECHET}"}
_RUNGS |= {"screen": "screen", JUDGE: f"judge: {FRECHET}", "finals": "finals"}
_RUNGS |= {"refine": "refinement: passes forward and back", REPORT: "report: fresh noise"}


@dataclass
class StudyContent:
    """Everything the store holds about a study, by order."""

    name: str
    settings: StudyRecord | None
    rows: list[EvaluationRecord]
    events: list[EventRecord]
    damaged: list[tuple[str, str]]

    @cached_property
    def origins(self) -> dict[str, str]:
        """Origin by hash: of several candidates the first."""
        return {row.candidate: row.origin for row in reversed(self.rows) if not row.of_report}


def facts(study: StudyContent) -> list[tuple[str, str]]:
    """(name, text) of what was done, and when."""
    rows = study.rows
    searched = [row for row in rows if not row.of_report]
    reported = [row for row in rows if row.of_report]
    begun = study.settings.created_at if study.settings else min(row.finished_at for row in rows)
    lines = [
        ("evaluations", f"{len(rows):,}, of {len({row.candidate for row in rows}):,} candidates"),
        ("denoiser calls of the search", f"{sum(row.denoiser_calls for row in searched):,}"),
        ("denoiser calls of the report", f"{sum(row.denoiser_calls for row in reported):,}"),
        ("time in evaluations", duration(sum(row.seconds for row in rows))),
        ("devices", ", ".join(sorted({row.device for row in rows if row.device}))),
        ("seeds of the search", _numbers(row.seed for row in searched)),
        ("seeds of the report", _numbers(row.seed for row in reported)),
        ("begun", minute(begun)),
        ("last record", minute(latest(study))),
    ]
    return [(name, value) for name, value in lines if value]


def rungs(rows: list[EvaluationRecord]) -> list[tuple[str, int, int, str]]:
    """(rung, evaluations, failed, denoiser calls), up the ladder."""
    names = sorted({row.rung for row in rows}, key=ladder)
    found = []
    for name in names:
        own = [row for row in rows if row.rung == name]
        failed = sum(row.status != "complete" for row in own)
        label = rung_text(name, sorted({row.metric for row in own}))
        found.append((label, len(own), failed, f"{sum(r.denoiser_calls for r in own):,}"))
    return found


def rung_text(name: str, metrics: list[str]) -> str:
    """A rung in words, with the metrics by which it judged."""
    if name.startswith(MEASURED):
        return f"report: {name.removeprefix(MEASURED)}"
    label = _RUNGS.get(name, name)
    return label if metrics == ["frechet"] else label.replace(FRECHET, ", ".join(metrics))


def ladder(name: str) -> tuple[int, str]:
    """A rung's place up the ladder."""
    return (list(_RUNGS).index(name) if name in _RUNGS else len(_RUNGS), name)


def failures(rows: list[EvaluationRecord]) -> list[tuple[str, int]]:
    """The distinct errors of failed evaluations with their counts."""
    return count((row.error.splitlines() or ["no message"])[0] for row in rows if row.status != "complete")


def settings_lines(record: StudyRecord | None) -> list[tuple[str, str]]:
    """(name, text) of every setting, nested ones with dots."""
    if record is None:
        return []
    try:
        settings = json.loads(record.settings_json)
    except ValueError:
        return [("settings", record.settings_json)]
    return list(_flat(settings)) if isinstance(settings, dict) else [("settings", record.settings_json)]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def told(events: list[EventRecord]) -> list[tuple[str, str, str]]:
    """(time, kind, message) of what happened; what is routine is only counted."""
    newest = [event for event in events if event.kind not in ROUTINE][-MESSAGES:]
    return [(minute(event.at), event.kind, event.message) for event in newest]


def versions(study: StudyContent) -> list[tuple[str, str]]:
    """(package, versions) that computed the study."""
    found: dict[str, set[str]] = {}
    for held in [study.settings.versions if study.settings else {}, *(row.versions for row in study.rows)]:
        for name, version in held.items():
            found.setdefault(name, set()).add(version)
    return [(name, ", ".join(sorted(found[name]))) for name in sorted(found)]


def latest(study: StudyContent) -> datetime:
    """When the last record was written."""
    return max([*(row.finished_at for row in study.rows), *(event.at for event in study.events)])


def count(names: Iterable[str]) -> list[tuple[str, int]]:
    """(name, how often), by name."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return sorted(counts.items())


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def minute(time: datetime) -> str:
    """A time as text."""
    return time.strftime("%Y-%m-%d %H:%M UTC")


def day(time: datetime) -> str:
    """A date as text."""
    return time.strftime("%Y-%m-%d")


def within(store: Store, text: str) -> str:
    """Paths inside the store without the place where the store happens to lie."""
    return text.replace(store.root.rstrip("/") + "/", "")
