"""Pictures of a study as PNG, SVG or PDF files, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fewstep.dashboards.lines import (
    ACCENT,
    LEVEL,
    PREDICTION_COLOURS,
    Level,
    convergence_lines,
    front_lines,
    ticks_of,
    value_title,
)
from fewstep.dashboards.picture import LANE_TOP, LANES, Picture, lay_out, span_of
from fewstep.dashboards.results import FOUND, headline
from fewstep.errors import ConfigurationError
from fewstep.files import write_whole
from fewstep.search_spaces.schedule import SolverSchedule

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def save_front(table: pd.DataFrame, path: str | Path, level: Level | None = None) -> Path:
    """Draw `front_figure`'s content to a PNG, SVG or PDF file, by the path's suffix; the path.

    `level` is drawn as a horizontal line with its interval.

    Raises ConfigurationError for another suffix or a table that cannot be shown, StorageError when the
    file cannot be written.
    """
    rows = headline(table)
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = _axes(figure)
    for line in front_lines(rows):
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
    if level is not None:
        axes.axhline(level.value, color=LEVEL, linewidth=1.2, linestyle="--", label=_plain(level.label), zorder=1)
        if level.low is not None and level.high is not None:
            axes.axhspan(level.low, level.high, color=LEVEL, alpha=0.15, linewidth=0, zorder=0)
    _label(axes, "denoiser calls per image (NFE)", value_title(rows), bool((rows["value"] > 0).all()))
    axes.set_xticks(sorted(set(rows["nfe"])))
    _legend(figure, axes, first=FOUND)
    return save_figure(figure, path)


def save_convergence(df: pd.DataFrame, path: str | Path) -> Path:
    """Draw `convergence_figure`'s content to a file; formats and errors as in `save_front`."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = _axes(figure)
    for nfe, colour, calls, best in convergence_lines(df):
        axes.step(calls, best, where="post", label=f"NFE {nfe}", color=colour, linewidth=1.8)
    _label(axes, "denoiser calls of the search", "best so far", bool((df["best"] > 0).all()))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _legend(figure, axes)
    return save_figure(figure, path)


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
    ticks, texts = ticks_of(span)
    rows[-1].set_xticks(ticks, texts)
    rows[-1].set_xlabel("λ = half log-SNR, noise to image")
    return save_figure(figure, path)


def _draw_schedule(axes: Axes, picture: Picture) -> None:
    foot = LANE_TOP - len(LANES)
    for step in picture.steps:
        colour = PREDICTION_COLOURS[step.prediction]
        style = ":" if step.off_axis else "-"
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


def _legend(figure: Figure, axes: Axes, first: str = "") -> None:
    entries = list(zip(*axes.get_legend_handles_labels(), strict=True))
    entries.sort(key=lambda entry: entry[1] != first)
    if entries:
        # Beside the axes, where it hides nothing.
        handles, names = zip(*entries, strict=True)
        figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)


def save_figure(figure: Figure, path: str | Path) -> Path:
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
