"""Figures of a study for its page, by plotly.

Colours are chosen to be read on white and on black; the page sets the colour of words and lines itself.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from fewstep.dashboards.lines import (
    ACCENT,
    MUTED,
    PREDICTION_COLOURS,
    convergence_lines,
    front_lines,
    ticks_of,
    value_title,
)
from fewstep.dashboards.picture import LANE_TOP, LANES, Span, lay_out, words
from fewstep.dashboards.results import FOUND, headline
from fewstep.search_spaces.schedule import SolverSchedule

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")

# Values closer than this factor have an axis as wide as it to both sides.
_LONE = 1.5
HEIGHT = 420
_INK, _GRID = "#6b7280", "rgba(128,128,128,0.25)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def front_figure(table: pd.DataFrame) -> go.Figure:
    """Quality against NFE of a `report_table`: one line a method with its intervals, found ones on top.

    The value axis is logarithmic unless a value is not positive. Raises ConfigurationError when the
    table mixes values that cannot be compared.
    """
    rows = headline(table)
    figure, lines = base_figure(), front_lines(rows)
    for line in lines:
        found = line.method == FOUND
        figure.add_trace(
            go.Scatter(
                x=line.x,
                y=line.values,
                name=escaped(line.method),
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
                hovertext=[escaped(text) for text in line.hover],
                hoverinfo="text",
            )
        )
    figure.update_xaxes(title_text="denoiser calls per image (NFE)", tickvals=sorted(set(rows["nfe"])))
    log = bool((rows["value"] > 0).all())
    ends = [end for line in lines for end in line.ends]
    figure.update_yaxes(title_text=value_title(rows), **(log_axis(ends) if log else {}))
    figure.update_layout(height=HEIGHT + _more_for_legend([line.method for line in lines]))
    return figure


def convergence_figure(df: pd.DataFrame) -> go.Figure:
    """The best value so far at each NFE over denoiser calls, from a `convergence` table."""
    figure, lines = base_figure(), convergence_lines(df)
    for nfe, colour, calls, best in lines:
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
    values = [value for *_, best in lines for value in best]
    figure.update_yaxes(title_text="best so far", **(log_axis(values) if min(values, default=0.0) > 0 else {}))
    return figure


def schedule_figure(schedule: SolverSchedule, span: Span | None = None) -> go.Figure:
    """A schedule on the lambda axis: calls as dots, and over each step what was decided there.

    An end at sigma = 0, which lies at infinity, is drawn apart. `span` sets the axis, so that several
    pictures can be compared.
    """
    picture = lay_out(schedule, span)
    figure = base_figure()
    for step in picture.steps:
        colour = PREDICTION_COLOURS[step.prediction]
        figure.add_trace(
            _quiet(
                x=[step.start, step.end],
                y=[0, 0],
                mode="lines",
                line={"color": colour, "width": 5, "dash": "dot" if step.off_axis else "solid"},
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
                text=[escaped(step.words[k]) for step in picture.steps],
                textfont={"size": 14, "color": _INK},
                hovertext=[escaped(step.details) for step in picture.steps],
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
    ticks, texts = ticks_of(picture.span)
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
    figure.update_layout(height=250, margin={"l": 90, "r": 12, "t": 6, "b": 44}, showlegend=False)
    return figure


def temporal_figure(errors: pd.DataFrame) -> go.Figure:
    """Relative error of a quantised network's temporal features over time: of all, of the best and the worst kept."""
    figure, times = base_figure(), errors["time"].tolist()
    lines = (
        ("most", "worst projection", MUTED[4], "triangle-up", "dot"),
        ("relative_error", "all together", ACCENT, "circle", "solid"),
        ("least", "best projection", MUTED[0], "triangle-down", "dot"),
    )
    for column, name, colour, symbol, dash in lines:
        figure.add_trace(
            go.Scatter(
                x=times,
                y=errors[column].tolist(),
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 2.6 if dash == "solid" else 1.6, "dash": dash},
                marker={"symbol": symbol, "size": 7},
                hovertemplate=f"{name}: %{{y:.3g}} at time %{{x:g}}<extra></extra>",
            )
        )
    figure.update_xaxes(title_text="time that the network is told")
    values = errors[["least", "relative_error", "most"]].to_numpy().flatten().tolist()
    axis = log_axis(values) if values and min(values) > 0 else {"rangemode": "tozero"}
    figure.update_yaxes(title_text="relative error, lower is better", **axis)
    figure.update_layout(height=340)
    return figure


def width_of(schedule: SolverSchedule) -> int:
    """The least width, in pixels, at which the words over a schedule's steps do not collide."""
    longest = max(len(word) for step in schedule.steps for word in words(step))
    return 110 + max(56, 9 * longest) * len(schedule.steps)


def base_figure() -> go.Figure:
    """An empty figure in the house's style, on no ground of its own."""
    axis = {
        "gridcolor": _GRID,
        "linecolor": _GRID,
        "tickcolor": _GRID,
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "title": {"font": {"size": 14}, "standoff": 8},
    }
    layout = {
        "template": go.layout.Template(),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 14, "color": _INK},
        "margin": {"l": 66, "r": 12, "t": 12, "b": 48},
        "height": HEIGHT,
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


def _more_for_legend(names: Sequence[str]) -> int:
    """Pixels that a legend of long names takes beyond two lines: they would be the picture's."""
    longest = max(map(len, names), default=0)
    lines = math.ceil(len(names) / (1 if longest > 32 else 2 if longest > 16 else 4))
    return 21 * max(0, lines - 2)


def log_axis(values: Iterable[float]) -> dict[str, Any]:
    """What makes an axis of these positive values, ends of intervals among them, logarithmic, as its labels have room.

    Every digit is told within a decade, further 2 and 5, and of many decades each. One value stands amid its axis.
    """
    shown = [value for value in values if value > 0]
    low, high = min(shown), max(shown)
    axis: dict[str, Any] = {"type": "log", "exponentformat": "none", "tickformat": "~g"}
    if high / low < _LONE:
        axis["range"] = [math.log10(low / _LONE), math.log10(high * _LONE)]
    return axis | {"dtick": "D1" if high / low < 6 else "D2" if high / low < 10**5 else 1}


def escaped(text: str) -> str:
    """Plotly reads a little HTML in every text; names are to be shown as they are."""
    return html.escape(text, quote=False)
