"""How a table was made: command, dates, seeds, machine, versions, images and intervals."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from fewstep.storage.masking import without_secrets
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import known_metrics

JACKKNIFE = "delete-a-group jackknife over the images"
WILSON = "Wilson's for a share"
NORMAL = "normal over the images"
BOOTSTRAP = "bootstrap over the candidates"
LEVEL = "95%"
NOT_RECORDED, NO_INTERVAL = "not recorded", "none"
MACHINE = "machine"
"""Under this name a record's versions hold the class of the machine that its worker ran on."""


def made_by(
    records: Sequence[EvaluationRecord],
    command: str,
    seeds: Mapping[str, int],
    intervals: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """How a table of these evaluations was made, by name, whoever renders it and whenever.

    `intervals` names the kind of interval by column, as `{"value": JACKKNIFE, "accuracy": WILSON}`; without it the
    records' metrics say what theirs are. `command` is shown without passwords.
    """
    return {
        "command": without_secrets(command),
        "date": _dates(record.finished_at for record in records),
        "seeds": _seeds(seeds),
        "machine": _machines(records),
        "versions": _versions(records),
        "images": _images(record.images for record in records),
        "interval": _intervals(records, intervals),
    }


def provenance(command: str, seeds: Mapping[str, int]) -> dict[str, str]:
    """How a table was made by this process, now, where it has no records: command, date, seeds, machine, interval."""
    return {
        "command": without_secrets(command),
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": _seeds(seeds),
        "machine": machine_class(),
        "interval": f"{LEVEL}, {JACKKNIFE}",
    }


def footnote(
    command: str,
    seeds: Mapping[str, int],
    notes: Mapping[str, str] | None = None,
    records: Sequence[EvaluationRecord] | None = None,
    intervals: Mapping[str, str] | None = None,
) -> str:
    """The same in one line, with notes, for the foot of a table; of `records` where they are given."""
    made = provenance(command, seeds) if records is None else made_by(records, command, seeds, intervals)
    return "; ".join(f"{name}: {value}" for name, value in (made | dict(notes or {})).items())


def machine_class() -> str:
    """Cores and architecture, without anything that names the machine."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def _seeds(seeds: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {seed}" for name, seed in seeds.items())


def _dates(times: Iterable[datetime]) -> str:
    days = sorted({time.astimezone(UTC).date().isoformat() for time in times})
    if not days:
        return NOT_RECORDED
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _machines(records: Sequence[EvaluationRecord]) -> str:
    machines = sorted({f"{r.versions.get(MACHINE, NOT_RECORDED)}, device {r.device or NOT_RECORDED}" for r in records})
    return " / ".join(machines) or NOT_RECORDED


def _versions(records: Sequence[EvaluationRecord]) -> str:
    """Each library with every version that took part."""
    names = sorted({name for r in records for name in r.versions if name != MACHINE})
    found = {name: sorted({r.versions[name] for r in records if name in r.versions}) for name in names}
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items()) or NOT_RECORDED


def _images(counts: Iterable[int]) -> str:
    known = sorted(set(counts))
    if not known:
        return NOT_RECORDED
    return f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _intervals(records: Sequence[EvaluationRecord], intervals: Mapping[str, str] | None) -> str:
    if intervals is None:
        figures = {record.metric for record in records}
        kinds = {metric.figure: metric.interval for metric in known_metrics().values()} if figures else {}
        return " / ".join(sorted({kinds.get(figure, NOT_RECORDED) or NO_INTERVAL for figure in figures})) or NO_INTERVAL
    by_kind: dict[str, list[str]] = {}
    for column, kind in intervals.items():
        by_kind.setdefault(kind, []).append(column)
    told = [f"{', '.join(columns)}: {kind}" for kind, columns in by_kind.items()]
    return "; ".join([LEVEL, *told]) if told else NO_INTERVAL
