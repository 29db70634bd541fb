"""What the pictures of a study show, before any library draws it: lines with their intervals, titles, ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from matplotlib.ticker import MaxNLocator

from fewstep.dashboards.picture import Span
from fewstep.dashboards.results import FOUND, methods

# The colours of Okabe and Ito, told apart with every colour blindness; without black and yellow, which a dark page or
# a white one swallows. What has more lines than colours is told by its marker too.
ACCENT = "#d55e00"
MUTED = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a8f98")
LEVEL = "#374151"
SYMBOLS = 8
PREDICTION_COLOURS = {"noise": "#0072b2", "data": "#009e73", "ems": "#cc79a7"}
SEQUENCE = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98")
DODGE = 0.06
LOWEST_SHARE = 0.05


@dataclass(frozen=True)
class Level:
    """A value that does not depend on NFE, such as a many-step teacher's, with its interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


class Line:
    """One method's line in the front: places, values, and the intervals' reach below and above."""

    def __init__(self, method: str, index: int, shift: float, colour: str, rows: pd.DataFrame) -> None:
        self.method, self.index, self.colour = method, index % SYMBOLS, colour
        self.x = [float(nfe) + shift for nfe in rows["nfe"]]
        self.values = [float(value) for value in rows["value"]]
        self.below, self.above, self.hover = [], [], []
        columns = zip(self.values, rows["low"], rows["high"], rows["nfe"], rows["grid"], strict=True)
        for value, low, high, nfe, grid in columns:
            known = math.isfinite(low) and math.isfinite(high)
            below = max(0.0, value - low) if known else 0.0
            # On a logarithmic axis an interval that reaches 0 would have no end.
            self.below.append(min(below, (1 - LOWEST_SHARE) * value) if value > 0 else below)
            self.above.append(max(0.0, high - value) if known else 0.0)
            interval = f" ({low:.4g} to {high:.4g})" if known else ""
            name = f"{method}/{grid}" if grid else method
            self.hover.append(f"{name}, NFE {nfe}: {value:.4g}{interval}")

    @property
    def ends(self) -> list[float]:
        """Where its intervals, as they are drawn, begin and end."""
        pairs = list(zip(self.values, self.below, self.above, strict=True))
        return [v - below for v, below, _ in pairs] + [v + above for v, _, above in pairs]


def front_lines(rows: pd.DataFrame) -> list[Line]:
    """The methods' lines, found ones last so that they lie on top; set apart a little for the intervals."""
    names = methods(rows)
    presets = [name for name in names if name != FOUND]
    lines = []
    for name in [*presets, *(name for name in names if name == FOUND)]:
        number = presets.index(name) if name in presets else 0
        shift = DODGE * (number - (len(presets) - 1) / 2) if name in presets else 0.0
        colour = ACCENT if name == FOUND else MUTED[number % len(MUTED)]
        index = 0 if name == FOUND else number + 1
        lines.append(Line(name, index, shift, colour, rows[rows["method"] == name].sort_values("nfe")))
    return lines


def convergence_lines(df: pd.DataFrame) -> list[tuple[int, str, list[int], list[float]]]:
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


def value_title(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "value"
    first = rows.iloc[0]
    space = f" ({first['features']})" if first["features"] else ""
    return f"{first['metric']}{space}, lower is better"


def ticks_of(span: Span) -> tuple[list[float], list[str]]:
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
