"""Figures of a study: plotly for the page, matplotlib for PNG and SVG files.

Colours are chosen to be read on white and on black; the page sets the colour of words and lines itself.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fewstep.dashboards.files import write_whole
from fewstep.dashboards.picture import LANE_TOP, LANES, Picture, Span, lay_out, span_of
from fewstep.dashboards.results import FOUND, headline, methods
from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import SolverSchedule

ACCENT = "#e8590c"
MUTED = ("#4c78a8", "#3a9d8f", "#9d755d", "#b279a2", "#6f7f3f", "#7d8597", "#c2904d", "#5f6caf")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
PREDICTION_COLOURS = {"noise": "#4c78a8", "data": "#3a9d8f"}
SEQUENCE = ("#4c78a8", "#3a9d8f", "#e8590c", "#b279a2", "#9d755d", "#6f7f3f", "#7d8597", "#c2904d")

_INK, _GRID = "#6b7280", "rgba(128,128,128,0.25)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_DODGE = 0.06
_LOWEST_SHARE = 0.05


# -- plotly ---------------------------------------------------------------------------------------------


def front_figure(table: pd.DataFrame) -> go.Figure:
    """Quality against NFE of a `report_table`: one line a method with its intervals, found ones on top.

    The value axis is logarithmic unless a value is not positive. Raises ConfigurationError when the
    table mixes values that cannot be compared.
    """
    rows = headline(table)
    figure = _figure()
    for line in _front_lines(rows):
        found = line.method == FOUND
        figure.add_trace(
            go.Scatter(
                x=line.x,
                y=line.values,
                name=_escaped(line.method),
                legendrank=1 if found else 1000,
                mode="lines+markers",
                line={"color": line.colour, "width": 3 if found else 1.4},
                marker={"symbol": SYMBOLS[line.index], "size": 10 if found else 7, "color": line.colour},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": line.above,
                    "arrayminus": line.below,
                    "thickness": 1.6 if found else 1,
                    "width": 4,
                },
                hovertext=[_escaped(text) for text in line.hover],
                hoverinfo="text",
            )
        )
    figure.update_xaxes(title_text="denoiser calls per image (NFE)", tickvals=sorted(set(rows["nfe"])))
    log = bool((rows["value"] > 0).all())
    figure.update_yaxes(title_text=_value_title(rows), **(_log_axis() if log else {}))
    return figure


def convergence_figure(df: pd.DataFrame) -> go.Figure:
    """The best value so far at each NFE over denoiser calls, from a `convergence` table."""
    figure = _figure()
    for nfe, colour, calls, best in _convergence_lines(df):
        figure.add_trace(
            go.Scatter(
                x=calls,
                y=best,
                name=f"NFE {nfe}",
                mode="lines",
                line={"color": colour, "width": 2.2, "shape": "hv"},
                hovertemplate=f"NFE {nfe}: %{{y:.4g}} after %{{x:,}} calls<extra></extra>",
            )
        )
    figure.update_xaxes(title_text="denoiser calls of the search", rangemode="tozero", tickformat="~s")
    log = bool((df["best"] > 0).all())
    figure.update_yaxes(title_text="best so far", **(_log_axis() if log else {}))
    return figure


def schedule_figure(schedule: SolverSchedule, span: Span | None = None) -> go.Figure:
    """A schedule on the lambda axis: calls as dots, and over each step what was decided there.

    An end at sigma = 0, which lies at infinity, is drawn apart. `span` sets the axis, so that several
    pictures can be compared.
    """
    picture = lay_out(schedule, span)
    figure = _figure()
    for step in picture.steps:
        colour = PREDICTION_COLOURS[step.prediction]
        figure.add_trace(
            _quiet(
                x=[step.start, step.end],
                y=[0, 0],
                mode="lines",
                line={"color": colour, "width": 5, "dash": "dot" if step.to_zero else "solid"},
            )
        )
        # A thread from the words to the step that they are about.
        figure.add_trace(
            _quiet(
                x=[step.column, step.column, step.middle],
                y=[LANE_TOP - len(LANES) + 0.45, LANE_TOP - len(LANES) + 0.2, 0.16],
                mode="lines",
                line={"color": colour, "width": 1},
                opacity=0.7,
            )
        )
    for k in range(len(LANES)):
        figure.add_trace(
            go.Scatter(
                x=[step.column for step in picture.steps],
                y=[LANE_TOP - k] * len(picture.steps),
                mode="text",
                text=[_escaped(step.words[k]) for step in picture.steps],
                textfont={"size": 12, "color": _INK},
                hovertext=[_escaped(step.details) for step in picture.steps],
                hoverinfo="text",
                cliponaxis=False,
                showlegend=False,
            )
        )
    *calls, end = picture.marks
    for marks, symbol, size in ((calls, "circle", 11), ([end], "diamond-open", 12)):
        symbols = [symbol if mark.called or mark is end else "circle-open" for mark in marks]
        figure.add_trace(
            go.Scatter(
                x=[mark.place for mark in marks],
                y=[0.0] * len(marks),
                mode="markers",
                marker={
                    "symbol": symbols,
                    "size": size,
                    "color": ACCENT,
                    "opacity": 1,
                    "line": {"width": 2, "color": ACCENT},
                },
                hovertext=[mark.details for mark in marks],
                hoverinfo="text",
                cliponaxis=False,
                showlegend=False,
            )
        )
    ticks, texts = _ticks(picture.span)
    figure.update_xaxes(
        title_text="λ = half log-SNR, noise to image",
        range=list(picture.span.ends),
        tickvals=ticks,
        ticktext=texts,
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    figure.update_yaxes(
        range=[-0.7, LANE_TOP + 0.6],
        tickvals=[LANE_TOP - k for k in range(len(LANES))],
        ticktext=list(LANES),
        showgrid=False,
        zeroline=False,
        showline=False,
        ticks="",
        fixedrange=True,
    )
    figure.update_layout(height=250, margin={"l": 82, "r": 12, "t": 6, "b": 44}, showlegend=False)
    return figure


def _figure() -> go.Figure:
    axis = {
        "gridcolor": _GRID,
        "linecolor": _GRID,
        "tickcolor": _GRID,
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "title": {"font": {"size": 13}, "standoff": 8},
    }
    layout = {
        "template": go.layout.Template(),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 13, "color": _INK},
        "margin": {"l": 62, "r": 12, "t": 12, "b": 48},
        "height": 420,
        "showlegend": True,
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0},
        "hovermode": "closest",
        "dragmode": False,
        "xaxis": axis,
        "yaxis": axis,
    }
    return go.Figure(layout=layout)


def _quiet(**settings: Any) -> go.Scatter:
    return go.Scatter(hoverinfo="skip", showlegend=False, cliponaxis=False, **settings)


def _log_axis() -> dict[str, Any]:
    return {"type": "log", "dtick": "D2", "exponentformat": "none", "tickformat": "~g"}


def _escaped(text: str) -> str:
    """Plotly reads a little HTML in every text; names are to be shown as they are."""
    return html.escape(text, quote=False)


# -- matplotlib -----------------------------------------------------------------------------------------


def save_front(table: pd.DataFrame, path: str | Path) -> Path:
    """Draw `front_figure`'s content to a PNG, SVG or PDF file, by the path's suffix; the path.

    Raises ConfigurationError for another suffix or a table that cannot be shown, StorageError when the
    file cannot be written.
    """
    rows = headline(table)
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = _axes(figure)
    for line in _front_lines(rows):
        found = line.method == FOUND
        axes.errorbar(
            line.x,
            line.values,
            yerr=[line.below, line.above],
            label=_plain(line.method),
            color=line.colour,
            marker=MARKERS[line.index],
            markersize=7 if found else 5,
            linewidth=2.6 if found else 1.2,
            elinewidth=1.6 if found else 1,
            capsize=3,
            zorder=3 if found else 2,
        )
    _label(axes, "denoiser calls per image (NFE)", _value_title(rows), bool((rows["value"] > 0).all()))
    axes.set_xticks(sorted(set(rows["nfe"])))
    _legend(axes, first=FOUND)
    return _save(figure, path)


def save_convergence(df: pd.DataFrame, path: str | Path) -> Path:
    """Draw `convergence_figure`'s content to a file; formats and errors as in `save_front`."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = _axes(figure)
    for nfe, colour, calls, best in _convergence_lines(df):
        axes.step(calls, best, where="post", label=f"NFE {nfe}", color=colour, linewidth=1.8)
    _label(axes, "denoiser calls of the search", "best so far", bool((df["best"] > 0).all()))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _legend(axes)
    return _save(figure, path)


def save_schedules(schedules: Sequence[tuple[str, SolverSchedule]], path: str | Path) -> Path:
    """Draw labelled schedules to a file, one row each on one lambda axis; formats and errors as above.

    Raises ConfigurationError when there is no schedule to draw.
    """
    if not schedules:
        raise ConfigurationError(f"there is no schedule to draw in {path}: give at least one")
    span = span_of(schedule for _, schedule in schedules)
    most = max(len(schedule.steps) for _, schedule in schedules)
    figure = Figure(figsize=(max(7.2, 1.6 + 0.72 * most), 2.1 * len(schedules) + 0.4), layout="constrained")
    rows = figure.subplots(len(schedules), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, schedule) in zip(rows, schedules, strict=True):
        _draw_schedule(axes, lay_out(schedule, span))
        axes.set_title(_plain(label), loc="left", fontsize=10)
    ticks, texts = _ticks(span)
    rows[-1].set_xticks(ticks, texts)
    rows[-1].set_xlabel("λ = half log-SNR, noise to image")
    return _save(figure, path)


def _draw_schedule(axes: Axes, picture: Picture) -> None:
    foot = LANE_TOP - len(LANES)
    for step in picture.steps:
        colour = PREDICTION_COLOURS[step.prediction]
        style = ":" if step.to_zero else "-"
        axes.plot([step.start, step.end], [0, 0], style, color=colour, linewidth=3.5, clip_on=False)
        thread = ([step.column, step.column, step.middle], [foot + 0.45, foot + 0.2, 0.2])
        axes.plot(*thread, color=colour, linewidth=0.8, alpha=0.7)
        for k, word in enumerate(step.words):
            axes.text(step.column, LANE_TOP - k, _plain(word), ha="center", va="center", fontsize=8.5)
    for mark in picture.marks:
        end = mark is picture.marks[-1]
        axes.plot(
            mark.place,
            0,
            "D" if end else "o",
            color=ACCENT,
            markerfacecolor=ACCENT if mark.called else "white",
            markersize=6 if end else 7,
            zorder=4,
            clip_on=False,
        )
    axes.set_xlim(*picture.span.ends)
    axes.set_ylim(-0.7, LANE_TOP + 0.6)
    axes.set_yticks([LANE_TOP - k for k in range(len(LANES))], LANES, fontsize=8.5)
    axes.tick_params(left=False)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def _axes(figure: Figure) -> Axes:
    axes = figure.subplots()
    axes.grid(True, color="0.88", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)
    return axes


def _label(axes: Axes, x: str, y: str, log: bool) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(_plain(y))
    if log:
        axes.set_yscale("log", nonpositive="clip")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        few = high / low < 30  # less than a decade and a half: the ticks in between are wanted
        axes.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "") if few else NullFormatter()
        )


def _legend(axes: Axes, first: str = "") -> None:
    entries = list(zip(*axes.get_legend_handles_labels(), strict=True))
    entries.sort(key=lambda entry: entry[1] != first)
    if entries:
        axes.legend(*zip(*entries, strict=True), frameon=False, fontsize=9)


def _save(figure: Figure, path: str | Path) -> Path:
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ConfigurationError(f"cannot draw to {path}: name the file .png, .svg or .pdf")
    # No date and no random names within: the same figure gives the same bytes.
    dateless: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "fewstep"}):
        figure.savefig(buffer, format=kind, dpi=160, metadata=dateless)
    return write_whole(path, buffer.getvalue())


def _plain(text: str) -> str:
    """Matplotlib reads TeX between dollar signs; names are to be shown as they are."""
    return text.replace("$", r"\$")


# -- shared ---------------------------------------------------------------------------------------------


class _Line:
    """One method's line in the front: places, values, and the intervals' reach below and above."""

    def __init__(self, method: str, index: int, shift: float, colour: str, rows: pd.DataFrame) -> None:
        self.method, self.index, self.colour = method, index % len(SYMBOLS), colour
        self.x = [float(nfe) + shift for nfe in rows["nfe"]]
        self.values = [float(value) for value in rows["value"]]
        self.below, self.above, self.hover = [], [], []
        columns = zip(self.values, rows["low"], rows["high"], rows["nfe"], rows["grid"], strict=True)
        for value, low, high, nfe, grid in columns:
            known = math.isfinite(low) and math.isfinite(high)
            below = max(0.0, value - low) if known else 0.0
            # On a logarithmic axis an interval that reaches 0 would have no end.
            self.below.append(min(below, (1 - _LOWEST_SHARE) * value) if value > 0 else below)
            self.above.append(max(0.0, high - value) if known else 0.0)
            interval = f" ({low:.4g} to {high:.4g})" if known else ""
            name = f"{method}/{grid}" if grid else method
            self.hover.append(f"{name}, NFE {nfe}: {value:.4g}{interval}")


def _front_lines(rows: pd.DataFrame) -> list[_Line]:
    """The methods' lines, found ones last so that they lie on top; set apart a little for the intervals."""
    names = methods(rows)
    presets = [name for name in names if name != FOUND]
    lines = []
    for name in [*presets, *(name for name in names if name == FOUND)]:
        number = presets.index(name) if name in presets else 0
        shift = _DODGE * (number - (len(presets) - 1) / 2) if name in presets else 0.0
        colour = ACCENT if name == FOUND else MUTED[number % len(MUTED)]
        index = 0 if name == FOUND else number + 1
        lines.append(_Line(name, index, shift, colour, rows[rows["method"] == name].sort_values("nfe")))
    return lines


def _convergence_lines(df: pd.DataFrame) -> list[tuple[int, str, list[int], list[float]]]:
    """(NFE, colour, calls, best) with the improvements only, each line drawn to the end of the search."""
    end = int(df["calls"].max()) if len(df) else 0
    lines = []
    for k, nfe in enumerate(sorted(set(df["nfe"]))):
        rows = df[df["nfe"] == nfe]
        better = rows[rows["best"].diff().fillna(-1.0) < 0]
        calls = [*(int(value) for value in better["calls"]), end]
        best = [*(float(value) for value in better["best"]), float(rows["best"].iloc[-1])]
        lines.append((int(nfe), SEQUENCE[k % len(SEQUENCE)], calls, best))
    return lines


def _value_title(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "value"
    first = rows.iloc[0]
    return f"{first['metric']} ({first['features']}), lower is better"


def _ticks(span: Span) -> tuple[list[float], list[str]]:
    """Round places on the finite part of an axis, and the words for sigma = 0."""
    places = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(span.low, span.high)
    low, high = span.low - 1e-9, span.high + 1e-9
    ticks = [float(place) for place in places if low <= place <= high]
    texts = [f"{place:g}".replace("-", "−") for place in ticks]
    if span.has_zero:
        # Close to the break a number would run into the words.
        room = span.zero - 0.08 * span.width
        texts = [text for text, place in zip(texts, ticks, strict=True) if place < room]
        ticks = [place for place in ticks if place < room]
        ticks.append(span.zero)
        texts.append("σ = 0")
    return ticks, texts
