"""Templates, and how figures and numbers get into them."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from fewstep.dashboards.summary import duration, minute

_FOLDER = Path(__file__).parent / "templates"


class Pages:
    """Renders the templates."""

    def __init__(self) -> None:
        loader = FileSystemLoader(_FOLDER)
        self._templates = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._templates.filters |= {"number": _number, "value": _value, "time": _time, "duration": duration}
        self._templates.globals["plot"] = _plot

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page of a template."""
        return HTMLResponse(self._templates.get_template(f"{name}.html.j2").render(**values), status)


def _plot(figure: go.Figure, name: str, label: str, width: int = 0) -> Markup:
    """A place that the page's script draws a figure into; `label` says to those who cannot see it what it shows."""
    wide = Markup(' style="min-width:{}px"').format(width) if width else ""
    scrolls = Markup(' tabindex="0" role="region" aria-label="{}"').format(label) if width else ""
    return Markup(
        '<div class="wide"{}><div class="plot" id="{}" role="img" aria-label="{}"{} data-figure="{}"></div></div>'
    ).format(scrolls, name, label, wide, figure.to_json())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _time(value: datetime | None) -> str:
    return "" if value is None else minute(value)
