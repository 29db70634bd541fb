"""Figures that only the live pages have; the others are the static report's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fewstep.dashboards.figures import SYMBOLS, base_figure, escaped, log_axis
from fewstep.dashboards.lines import ACCENT, MUTED, SEQUENCE
from fewstep.dashboards.web.busy import Busy
from fewstep.dashboards.web.findings import Rung


def funnel_figure(rungs: Sequence[Rung]) -> go.Figure:
    """How many candidates came to each rung, and how many evaluations failed there, where some did."""
    figure, names = base_figure(), [escaped(rung.name) for rung in rungs]
    told = [("candidates", [r.candidates for r in rungs], MUTED[0], "")]
    if any(rung.failed for rung in rungs):
        told.append(("failed evaluations", [r.failed for r in rungs], ACCENT, "/"))
    for name, values, colour, shape in told:
        figure.add_trace(
            go.Bar(
                y=names,
                x=values,
                name=name,
                orientation="h",
                marker={"color": colour, "pattern": {"shape": shape}},
                text=[f"{value:,}" if value else "" for value in values],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{y}: %{x:,} " + name + "<extra></extra>",
            )
        )
    most = max((rung.candidates for rung in rungs), default=1)
    figure.update_xaxes(title_text="count", range=[0, 1.3 * max(most, 1)], nticks=5)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(height=140 + 26 * len(told) * len(rungs), barmode="group")
    return figure


def refit_figure(refits: pd.DataFrame) -> go.Figure:
    """The surrogate's held-out rank correlation over the candidates that it had seen."""
    figure = base_figure()
    figure.add_trace(
        go.Scatter(
            x=refits["evaluations"].tolist(),
            y=refits["tau"].tolist(),
            mode="lines+markers",
            name="surrogate",
            line={"color": MUTED[0], "width": 2.2},
            marker={"size": 8},
            hovertemplate="τ = %{y:.3f} after %{x:,} candidates<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="candidates that it was fitted to (count)")
    figure.update_yaxes(title_text="Kendall's τ, higher is better", range=[min(-0.1, refits["tau"].min() - 0.1), 1.05])
    figure.update_layout(showlegend=False, height=320)
    return figure


def busy_figure(busy: Busy) -> go.Figure:
    """How many workers were busy over time."""
    figure = base_figure()
    figure.add_trace(
        go.Scatter(
            x=busy.times,
            y=busy.workers,
            mode="lines",
            line={"color": MUTED[0], "width": 2.2, "shape": "hvh"},
            fill="tozeroy",
            fillcolor="rgba(0,114,178,0.15)",
            hovertemplate="%{y:.2f} workers at %{x|%Y-%m-%d %H:%M:%S}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="time (UTC)", nticks=6)
    figure.update_yaxes(title_text="workers busy (count)", rangemode="tozero", nticks=6)
    figure.update_layout(showlegend=False, height=280)
    return figure


def actors_figure(actors: pd.DataFrame) -> go.Figure:
    """Which share of the time each actor was busy."""
    figure = base_figure()
    figure.add_trace(
        go.Bar(
            y=actors["actor"].tolist(),
            x=actors["share"].tolist(),
            orientation="h",
            marker={"color": MUTED[0]},
            text=[f"{share:.0%}" for share in actors["share"]],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1%} of the time<extra></extra>",
        )
    )
    figure.update_xaxes(
        title_text="share of the time busy (1 is all)", range=[0, 1.15], tickvals=[0, 0.25, 0.5, 0.75, 1]
    )
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    figure.update_layout(height=110 + 26 * len(actors), showlegend=False)
    return figure


def importance_figure(shares: Mapping[str, float]) -> go.Figure:
    """Shares of decisions, the largest on top."""
    figure, names = base_figure(), [escaped(name) for name in shares]
    figure.add_trace(
        go.Bar(
            y=names,
            x=list(shares.values()),
            orientation="h",
            marker={"color": MUTED[0]},
            text=[f"{share:.0%}" for share in shares.values()],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="share of importance (1 is all)", range=[0, 1.2 * max(shares.values(), default=1.0)])
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    figure.update_layout(height=110 + 30 * len(names), showlegend=False)
    return figure


def tradeoff_figure(points: pd.DataFrame, x: str, y: str, titles: dict[str, str]) -> go.Figure:
    """Candidates by two of their figures, one trace an NFE; each point knows its candidate, for linked brushing."""
    figure = base_figure()
    for k, (nfe, own) in enumerate(points.groupby("nfe")):
        figure.add_trace(
            go.Scatter(
                x=own[x].tolist(),
                y=own[y].tolist(),
                mode="markers",
                name=f"NFE {nfe}",
                marker={"size": 11, "symbol": SYMBOLS[k % len(SYMBOLS)], "color": SEQUENCE[k % len(SEQUENCE)]},
                customdata=own["candidate"].tolist(),
                hovertext=[escaped(text) for text in own["label"]],
                hovertemplate=f"%{{hovertext}}<br>{titles[x]}: %{{x:.4g}}<br>{titles[y]}: %{{y:.4g}}<extra></extra>",
            )
        )
    places = sorted(set(points[x]))
    figure.update_xaxes(title_text=titles[x], **({"tickvals": places} if x == "nfe" and len(places) <= 6 else {}))
    log = y == "value" and bool((points[y] > 0).all())
    figure.update_yaxes(title_text=titles[y], **(log_axis(points[y]) if log else {}))
    figure.update_layout(dragmode="select", height=380, clickmode="event+select")
    return figure


def heat_figure(table: pd.DataFrame, across: str) -> go.Figure:
    """A pivot table as colours, on a logarithmic scale where all values are positive; low values are dark."""
    values = table.to_numpy(dtype=np.float64)
    finite = values[np.isfinite(values)]
    log = bool(finite.size and (finite > 0).all())
    shown = np.log10(values) if log else values
    rows, columns = [escaped(str(n)) for n in table.index], [escaped(str(n)) for n in table.columns]
    figure = base_figure()
    bar: dict[str, Any] = {
        "thickness": 14,
        "lenmode": "pixels",
        "len": min(360, 60 + 30 * len(rows)),
    }
    bar |= {"y": 1, "yanchor": "top"}
    if log:
        low, high = float(np.log10(finite.min())), float(np.log10(finite.max()))
        ticks = np.linspace(low, high, 5)
        bar |= {"tickvals": ticks.tolist(), "ticktext": [f"{10**tick:.3g}" for tick in ticks]}
    figure.add_trace(
        go.Heatmap(
            z=[[None if not np.isfinite(v) else float(v) for v in row] for row in shown],
            x=columns,
            y=rows,
            text=[["" if not np.isfinite(v) else f"{v:.3g}" for v in row] for row in values],
            texttemplate="%{text}",
            textfont={"size": 14},
            colorscale="Cividis",
            colorbar=bar,
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(title_text=escaped(across), type="category", side="top")
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    figure.update_layout(height=140 + 30 * len(rows), margin={"t": 70})
    return figure
