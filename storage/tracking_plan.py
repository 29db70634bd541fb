"""What MLflow is to show of a study, worked out from the tables alone.

The same tables always give the same plan, timestamps included, so that a study may be projected again
at any time: after a crash, to another server, or because new rows came in.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from fewstep.errors import ConfigurationError, StorageError
from fewstep.search_spaces.point import edit_of, parse_point, quantization_of, schedule_of
from fewstep.storage.names import metric_name
from fewstep.storage.origins import FOUND, PRESET, is_stock
from fewstep.storage.queries import COMPARABLE, front
from fewstep.storage.records import EventRecord, StudyRecord, derived_id
from fewstep.storage.store import Store
from fewstep.storage.verdicts import told_verdicts

ID_TAG = "fewstep.study_id"
STUDY_TAG = "fewstep.study"
CANDIDATE_TAG = "fewstep.candidate"
KIND_TAG = "fewstep.kind"
# What runs are found by, as `tags.nfe = '4'`.
MODEL_TAG, SPACE_TAG, NFE_TAG, BITS_TAG = "model", "space", "nfe", "bits"
# What MLflow shows as a run's description.
NOTE_TAG = "mlflow.note.content"

_COLUMNS = (
    "order",
    "candidate",
    "nfe",
    "rung",
    "origin",
    "model_hash",
    "metric",
    "features",
    "reference",
    "value",
    "low",
    "high",
    "images",
    "denoiser_calls",
    "status",
    "finished_at",
)
_NOT_IN_A_PARAM = re.compile(r"[^\w\-. :/]")


@dataclass(frozen=True)
class Point:
    """One value of a metric; `time` in milliseconds since 1970."""

    metric: str
    value: float
    step: int
    time: int


@dataclass(frozen=True)
class RunPlan:
    """One run; `start` and `end` in milliseconds since 1970, `texts` are artifacts by file name."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    points: Sequence[Point]
    texts: Mapping[str, str]
    start: int
    end: int
    labels: Mapping[str, str] = field(default_factory=dict)
    """Further tags, which runs are found by."""


@dataclass(frozen=True)
class StudyPlan:
    """A study's run and, by candidate hash, the nested runs beneath it."""

    id: str
    """The study's: what its runs are found by, whatever others are called."""
    parent: RunPlan
    members: Mapping[str, RunPlan]
    peers: Mapping[str, RunPlan]
    """Of the report, beside the front: what was found, and the best stock sampler of each NFE."""
    values: frozenset[tuple[float, int]]
    """(value, time) of every point that a run of this study can ever have shown."""


def plan_study(store: Store, study: str, rung: str = "frechet", front_rung: str | None = None) -> StudyPlan:
    """The runs of one study: the curve of `rung`, and the front of `front_rung` (by default the same).

    Raises StorageError when the store holds nothing of that study.
    """
    settings = next(iter(store.studies.records(where={"study": study})), None)
    rows = _evaluations(store, study)
    if settings is None and not rows:
        known = sorted({record.study for record in store.studies.records()})
        raise StorageError(f"there is no study {study!r} in {store.root}: choose one of {', '.join(known) or '(none)'}")
    events = store.events.records(where={"study": study})
    study_id = settings.id if settings else derived_id(study, rows[0]["model_hash"], rows[0]["finished_at"])
    tags = {ID_TAG: study_id, STUDY_TAG: study}
    shown = {member["candidate"]: member for member in front(store, study, front_rung or rung).to_dict("records")}
    beside = _beside(store, study, front_rung) if front_rung not in (None, rung) else {}
    members = {key: _plan_member(tags, member, rows) for key, member in shown.items()}
    peers = {key: _plan_member(tags, row, rows, kind) for key, (kind, row) in beside.items() if key not in shown}
    parent = _plan_parent(study, tags, settings, rows, events, rung)
    points = [*_surrogate_points(events), *(point for row in rows for point in _figures(row))]
    return StudyPlan(study_id, parent, members, peers, frozenset((point.value, point.time) for point in points))


def with_figures(plan: StudyPlan, figures: Mapping[str, float], description: str = "") -> StudyPlan:
    """The plan with metrics of the study's run that its tables do not name, as of its end, and a description of it."""
    parent, ends = plan.parent, plan.parent.end
    points = [Point(metric_key(name), value, 0, ends) for name, value in figures.items()]
    values = plan.values | {(point.value, point.time) for point in points}
    tags = {**parent.tags, NOTE_TAG: description} if description else parent.tags
    return replace(plan, parent=replace(parent, points=[*parent.points, *points], tags=tags), values=values)


def metric_key(name: str) -> str:
    """A metric's name as MLflow takes it."""
    return _NOT_IN_A_PARAM.sub("_", name)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as parameters with dotted names; lists stay JSON."""
    params: dict[str, str] = {}
    for name, value in settings.items():
        key = _NOT_IN_A_PARAM.sub("_", f"{prefix}{name}")
        if isinstance(value, Mapping):
            params.update(flatten(value, f"{key}."))
        else:
            params[key] = value if isinstance(value, str) else json.dumps(value)
    return params


def best_so_far(rows: Iterable[Mapping[str, Any]], rung: str) -> list[Point]:
    """The improvements of the best value for each NFE, over the denoiser calls spent by then."""
    best: dict[str, float] = {}
    points = []
    calls = 0
    for row in rows:
        calls += row["denoiser_calls"]
        name = f"{_space(row)}/best_{rung}_nfe{row['nfe']}"
        if row["rung"] == rung and _finite(row) and row["value"] < best.get(name, math.inf):
            best[name] = row["value"]
            points.append(Point(name, row["value"], calls, _milliseconds(row["finished_at"])))
    return points


def _space(row: Mapping[Any, Any]) -> str:
    """What its value may be compared in, as metrics begin."""
    return metric_key(metric_name(row["metric"], row["features"]))


def _beside(store: Store, study: str, rung: str | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """(kind, row) by candidate, of what a rung says of each NFE: the lowest stock sampler, and what was found last."""
    rows = store.evaluations.read(where={"study": study, "rung": str(rung)}).to_pylist()
    chosen: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
    for row in sorted(filter(_finite, rows), key=lambda r: (-r["value"] if is_stock(r["origin"]) else 0.0, r["order"])):
        kind = "stock" if is_stock(row["origin"]) else "found" if row["origin"].startswith(FOUND) else ""
        if kind:
            chosen[kind, row["nfe"], *(row[name] for name in COMPARABLE)] = kind, row
    return {row["candidate"]: (kind, row) for kind, row in chosen.values()}


def _evaluations(store: Store, study: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = store.evaluations.read(_COLUMNS, where={"study": study}).to_pylist()
    return sorted(rows, key=lambda row: row["order"])


def _plan_parent(
    study: str,
    tags: Mapping[str, str],
    settings: StudyRecord | None,
    rows: Sequence[Mapping[str, Any]],
    events: Sequence[EventRecord],
    rung: str,
) -> RunPlan:
    times = [row["finished_at"] for row in rows]
    params: dict[str, str] = {}
    texts: dict[str, str] = {}
    if settings is not None:
        times.insert(0, settings.created_at)
        params = {"model": settings.model, "model_hash": settings.model_hash}
        params |= flatten(_json_object(settings.settings_json))
        params |= flatten(settings.versions, "versions.")
        texts = {"settings.json": settings.settings_json}
    said = told_verdicts(events).values()
    return RunPlan(
        name=study,
        tags={**tags, KIND_TAG: "study"} | ({NOTE_TAG: "\n\n".join(said)} if said else {}),
        params=params,
        points=[*best_so_far(rows, rung), *_surrogate_points(events)],
        texts=texts,
        start=_milliseconds(times[0]),
        end=_milliseconds(max(times)),
        labels=_study_labels(settings, rows),
    )


def _study_labels(settings: StudyRecord | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    said = _json_object(settings.settings_json) if settings is not None else {}
    space = "edit" if "subject" in said else str(said.get("space") or "schedule")
    calls = ",".join(str(n) for n in sorted({row["nfe"] for row in rows}))
    model = settings.model if settings is not None else ""
    return {name: v for name, v in ((MODEL_TAG, model), (SPACE_TAG, space), (NFE_TAG, calls)) if v}


def _labels(member: Mapping[Any, Any]) -> dict[str, str]:
    """Of a candidate: its model, the kinds it is made of, its calls, the bits of its weights and activations."""
    found = {MODEL_TAG: str(member["model"]), NFE_TAG: str(member["nfe"])}
    try:
        point = parse_point(member["candidate_json"])
    except ConfigurationError:
        return found
    config = quantization_of(point)
    bits = f"w{config.weight_bits}a{config.activation_bits}" if config else "full"
    return found | {SPACE_TAG: "+".join(part.kind for part in point.parts), BITS_TAG: bits}


def _plan_member(
    tags: Mapping[str, str], member: Mapping[Any, Any], rows: Sequence[Mapping[str, Any]], kind: str = "front"
) -> RunPlan:
    own = [row for row in rows if row["candidate"] == member["candidate"] and _finite(row)]
    points = [point for row in own for point in _figures(row)]
    times = [_milliseconds(row["finished_at"]) for row in own]
    # What a report has beside what was found says what it is.
    beside = member["rung"] == "report" and not member["origin"].startswith(FOUND)
    stock = member["origin"].removeprefix(PRESET) if beside or is_stock(member["origin"]) else ""
    return RunPlan(
        name=" / ".join([tags[STUDY_TAG], f"NFE {member['nfe']}", *([stock] if stock else [])]),
        tags={**tags, KIND_TAG: kind, CANDIDATE_TAG: member["candidate"]},
        params={
            "nfe": str(member["nfe"]),
            "candidate": member["candidate"],
            "origin": member["origin"],
            "model": member["model"],
        },
        points=points,
        texts=_artifacts(member["candidate_json"]),
        start=min(times),
        end=max(times),
        labels=_labels(member),
    )


def _figures(row: Mapping[str, Any]) -> list[Point]:
    """A row's value and the ends of its interval."""
    return [
        Point(f"{_space(row)}/{row['rung']}_{figure}", row[figure], row["images"], _milliseconds(row["finished_at"]))
        for figure in ("value", "low", "high")
        if row[figure] is not None and math.isfinite(row[figure])
    ]


def _artifacts(candidate: str) -> dict[str, str]:
    """The files of a point: one of each part that is a format of its own, or the point as it is."""
    try:
        point = parse_point(candidate)
    except ConfigurationError:
        return {"point.json": candidate}
    config, edit, schedule = quantization_of(point), edit_of(point), schedule_of(point)
    found = {
        "schedule.json": schedule.to_json() if schedule else "",
        "quantization.json": config.model_dump_json() if config else "",
        "edit.json": edit.model_dump_json() if edit else "",
    }
    return {name: text for name, text in found.items() if text} or {"point.json": candidate}


def _surrogate_points(events: Sequence[EventRecord]) -> list[Point]:
    points = []
    for event in events:
        data = _json_object(event.data_json) if event.kind == "refit" else {}
        evaluations = data.get("evaluations")
        for name in ("tau", "seconds"):
            value = data.get(name)
            if isinstance(value, int | float) and math.isfinite(value) and isinstance(evaluations, int):
                points.append(Point(f"surrogate_{name}", float(value), evaluations, _milliseconds(event.at)))
    return points


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}  # the text itself is kept as an artifact; a projection must not fail over it
    return value if isinstance(value, dict) else {}


def _finite(row: Mapping[str, Any]) -> bool:
    return row["status"] == "complete" and row["value"] is not None and math.isfinite(row["value"])


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)
