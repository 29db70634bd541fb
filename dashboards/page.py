"""One self-contained HTML page about a study: nothing on it is loaded from anywhere else.

Everything shown, the dates included, is read from the store, so the same store gives the same page.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from fewstep.dashboards.figures import convergence_figure, front_figure, schedule_figure, temporal_figure, width_of
from fewstep.dashboards.networks import kept_network
from fewstep.dashboards.picture import Span, extras, span_of
from fewstep.dashboards.results import (
    FINALS,
    FOUND,
    JUDGE,
    SCREEN,
    convergence,
    feature_spaces,
    headline,
    methods,
    report_table,
)
from fewstep.dashboards.summary import (
    MESSAGES,
    ROUTINE,
    StudyContent,
    count,
    day,
    facts,
    failures,
    latest,
    rungs,
    settings_lines,
    told,
    versions,
    within,
)
from fewstep.errors import ConfigurationError, DataError, StorageError
from fewstep.files import write_whole
from fewstep.search_spaces.point import Point, SchedulePoint, edit_of, parse_point, quantization_of, schedule_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.origins import told_origin
from fewstep.storage.queries import front
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store

_TEMPLATES = Path(__file__).parent / "templates"
_MEDIA = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "gif": "gif", "webp": "webp", "svg": "svg+xml"}


@dataclass(frozen=True)
class Cell:
    """One figure of the table: its value and interval as text, and the grid."""

    value: str
    interval: str
    grid: str
    best: bool


@dataclass(frozen=True)
class Verdict:
    """Found schedule against the best of what is stock at one NFE."""

    change: str
    preset: str
    apart: str


@dataclass(frozen=True)
class Comparison:
    """The table of one feature space, and its figure. `lines` holds a list of cells for every NFE."""

    caption: str
    nfes: list[int]
    lines: list[tuple[str, list[list[Cell]]]]
    verdicts: list[Verdict | None]
    figure: str


@dataclass(frozen=True)
class Shown:
    """A candidate; `figure` is empty where it samples by no solver schedule, `kind` where it cannot be read.

    `temporal` is the error of its network's temporal features, where the study keeps a quantised one that tells it.
    """

    title: str
    note: str
    figure: str
    text: str
    width: int
    kind: str
    temporal: str = ""


@dataclass
class _Study(StudyContent):
    """A study with its figures numbered as they are drawn."""

    _figures: int = field(default=0)

    def draw(self, figure: go.Figure) -> str:
        """A figure as HTML that waits for the page's one copy of plotly.js."""
        self._figures += 1
        text = pio.to_html(
            figure,
            include_plotlyjs=False,
            include_mathjax=False,
            full_html=False,
            div_id=f"figure-{self._figures}",
            config={"displayModeBar": False, "responsive": True, "displaylogo": False},
        )
        return str(text)


def write_page(
    store: Store,
    study: str,
    path: Path,
    images: Mapping[str, Path] | None = None,
    verdicts: Sequence[str] = (),
    shared: Iterable[tuple[int, str, str]] = (),
) -> Path:
    """Write the page of a study; the path. `images` are embedded under their captions.

    `verdicts`, lines that say what was found beyond what is stock, stand first; for `shared` see `report_table`.
    A study that has no report yet gets a page with what there is. Raises StorageError when the store
    holds no evaluations of the study or the page cannot be written, DataError when an image cannot be
    read and ConfigurationError for an image format that browsers do not show.
    """
    content = _read(store, study)
    table = report_table(store, study, shared)
    template = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    first = content.rows[0]
    settings = content.settings
    comparisons = [_compare(content, part) for part in feature_spaces(table)]
    way = convergence(store, study)
    shown = _schedules(content, store, table) if len(table) else _best_so_far(content, store)
    text = template.render(
        study=study,
        model=settings.model if settings else first.model,
        model_hash=settings.model_hash if settings else first.model_hash,
        partial=table.empty,
        verdicts=list(verdicts),
        comparisons=comparisons,
        convergence=content.draw(convergence_figure(way)) if len(way) else "",
        shown=shown,
        found=_found(content),
        images=[(caption, _data_uri(Path(file))) for caption, file in (images or {}).items()],
        facts=facts(content),
        rungs=rungs(content.rows),
        failures=failures(content.rows),
        settings=settings_lines(settings),
        event_counts=count(event.kind for event in content.events),
        messages=told(content.events),
        hidden=max(0, len([e for e in content.events if e.kind not in ROUTINE]) - MESSAGES),
        damaged=[(within(store, file), within(store, reason)) for file, reason in content.damaged],
        versions=versions(content),
        date=day(latest(content)),
        plotlyjs=get_plotlyjs(),
    )
    return write_whole(path, text.encode())


def _read(store: Store, study: str) -> _Study:
    settings = store.studies.records(where={"study": study})
    rows = store.evaluations.records(where={"study": study})
    events = store.events.records(where={"study": study})
    if not rows:
        known = store.evaluations.read(["study"])["study"].unique().to_pylist()
        if settings:
            raise StorageError(
                f"study {study!r} in {store.root} has no evaluations yet: start it or continue it with "
                f"`fewstep search --resume`, then ask for its page again"
            )
        raise StorageError(
            f"there are no evaluations of study {study!r} in {store.root}: "
            f"choose one of {', '.join(sorted(known)) or '(none)'}, or run `fewstep search` first"
        )
    return _Study(
        study,
        settings[-1] if settings else None,
        sorted(rows, key=lambda row: row.order),
        sorted(events, key=lambda event: event.order),
        store.damaged(),
    )


# -- the table ------------------------------------------------------------------------------------------


def _compare(study: _Study, table: pd.DataFrame) -> Comparison:
    nfes = sorted(int(nfe) for nfe in set(table["nfe"]))
    verdicts = [_verdict(table[table["nfe"] == nfe]) for nfe in nfes]
    lines = []
    for method in methods(table):
        own = table[table["method"] == method]
        cells = [_cells(own[own["nfe"] == nfe], table[table["nfe"] == nfe]["value"].min()) for nfe in nfes]
        lines.append((method, cells))
    first = table.iloc[0]
    images = sorted(set(table["images"]))
    count = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    metric = "Fréchet distance" if first["metric"] == "frechet" else str(first["metric"])
    space = f" in the feature space {first['features']}" if first["features"] else ""
    to = f" to {first['reference']}" if first["reference"] else ""
    caption = f"{metric}{space}{to}, {count} images"
    return Comparison(caption, nfes, lines, verdicts, study.draw(front_figure(table)))


def _cells(rows: pd.DataFrame, best: float) -> list[Cell]:
    return [
        Cell(_figure_text(value), _interval(low, high), str(grid), value == best)
        for value, low, high, grid in zip(rows["value"], rows["low"], rows["high"], rows["grid"], strict=True)
    ]


def _verdict(table: pd.DataFrame) -> Verdict | None:
    rows = headline(table)
    stock = (rows["method"] != FOUND) & ~rows["method"].str.startswith("analytic:")
    found, presets = rows[rows["method"] == FOUND], rows[stock]
    if found.empty or presets.empty:
        return None
    ours, theirs = found.iloc[0], presets.iloc[0]
    if any(math.isnan(row[end]) for row in (ours, theirs) for end in ("low", "high")):
        apart = "no intervals"
    else:
        separate = ours["high"] < theirs["low"] or theirs["high"] < ours["low"]
        apart = "intervals apart" if separate else "intervals overlap"
    change = ""
    if theirs["value"] > 0:
        change = f"{100 * (ours['value'] / theirs['value'] - 1):+.1f} %".replace("-", "−")
    return Verdict(change, str(theirs["method"]), apart)


def _figure_text(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def _interval(low: float, high: float) -> str:
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{_figure_text(low)} to {_figure_text(high)}"


# -- schedules ------------------------------------------------------------------------------------------


def _found(study: _Study) -> str:
    """What the study looks for, in one word."""
    point = _point(study.rows[0].candidate_json)
    return "edits" if point is not None and edit_of(point) is not None else "schedules"


def _schedules(study: _Study, store: Store, table: pd.DataFrame) -> list[Shown]:
    """Everything that was found once, by NFE."""
    found = table[table["origin"].str.startswith("found")].drop_duplicates("candidate")
    by_order = {row.order: row for row in study.rows}
    return _show(study, store, [by_order[order] for order in found["order"]])


def _best_so_far(study: _Study, store: Store) -> list[Shown]:
    """Before the report: the candidates on the search's own front."""
    known = {row.rung for row in study.rows}
    # An edit's search judges in its finals, before them by its screen.
    rung = next((name for name in (JUDGE, FINALS, SCREEN) if name in known), "")
    leaders = set(front(store, study.name, rung)["key"]) if rung else set()
    rows = [row for row in study.rows if row.rung == rung and row.key in leaders]
    return _show(study, store, sorted(rows, key=lambda row: row.nfe))


def _show(study: _Study, store: Store, rows: list[EvaluationRecord]) -> list[Shown]:
    points = [_point(row.candidate_json) for row in rows]
    drawn = [schedule for point in points if point is not None and (schedule := schedule_of(point)) is not None]
    span = span_of(drawn) if drawn else None
    return [_shown(study, store, row, point, span) for row, point in zip(rows, points, strict=True)]


def _shown(study: _Study, store: Store, row: EvaluationRecord, point: Point | None, span: Span | None) -> Shown:
    words = [told_origin(row.origin, study.origins), row.candidate]
    title = f"NFE {row.nfe}"
    if point is None:
        return Shown(title, ", ".join(words), "", _pretty(row.candidate_json), 0, "")
    schedule = schedule_of(point)
    words += _changes(point, row.metrics) + ([extras(schedule)] if schedule and extras(schedule) else [])
    figure, width = "", 0
    if schedule is not None:
        figure, width = study.draw(schedule_figure(schedule, span)), width_of(schedule)
    if isinstance(point, SchedulePoint):
        text = point.schedule.to_json(indent=2)
    else:
        text = _pretty(row.candidate_json)
    network = kept_network(Path(store.root), quantization_of(point))
    known = network is not None and len(network.temporal) > 0
    temporal = study.draw(temporal_figure(network.temporal)) if network and known else ""
    return Shown(title, ", ".join(words), figure, text, width, point.kind, temporal)


def _changes(point: Point, figures: Mapping[str, float]) -> list[str]:
    """What is said of a quantised network or of an edit beside its JSON."""
    config, edit, words = quantization_of(point), edit_of(point), []
    if config is not None:
        words.append(f"network {config.name}")
        if "size_bytes" in figures:
            words.append(f"{figures['size_bytes'] / 1e6:.3g} MB")
    if edit is not None:
        strengths = {"z": edit.strength_z, "h": edit.strength_h}
        words += [f"{name} moved by {strengths[name]:.3g}" for name in ("z", "h") if strengths[name]]
        ways = (edit.inversion, edit.generation)
        words.append("by " + " and ".join(w.name or w.hash if isinstance(w, SolverSchedule) else w for w in ways))
        words += [f"{name} {figures[name]:.3f}" for name in ("success", "identity") if name in figures]
    return words


def _point(text: str) -> Point | None:
    try:
        return parse_point(text)
    except ConfigurationError:
        return None


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def _data_uri(path: Path) -> str:
    media = _MEDIA.get(path.suffix.lower().removeprefix("."))
    if media is None:
        raise ConfigurationError(f"cannot show {path}: give images as {', '.join(_MEDIA)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read image {path}: {error.strerror}; leave it out or make it again") from error
    return f"data:image/{media};base64,{base64.b64encode(data).decode()}"
