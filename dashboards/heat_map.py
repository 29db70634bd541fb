"""A pivot table as a picture: one field a value, dark where it is low."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from fewstep.dashboards.drawings import save_figure

MOST_ROWS, MOST_COLUMNS = 60, 24


def save_heat_map(table: pd.DataFrame, title: str, path: str | Path) -> Path:
    """Draw rows x columns of values (NaN where there is none) to a PNG, SVG or PDF file; the path.

    Of more than MOST_ROWS rows or MOST_COLUMNS columns those with the lowest values are shown, which the title says.
    The colours are logarithmic where all values are positive. Errors as in `save_front`.
    """
    shown, said = _lowest(table, MOST_ROWS)
    flipped, more = _lowest(shown.T, MOST_COLUMNS)
    shown = flipped.T
    values = shown.to_numpy(dtype=np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    norm = LogNorm(low, high) if 0 < low < high else Normalize(low, high)
    figure = Figure(figsize=(3.2 + 0.75 * shown.shape[1], 1.4 + 0.24 * shown.shape[0]), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(np.ma.masked_invalid(values), cmap="viridis", norm=norm, aspect="auto")
    axes.set_xticks(range(shown.shape[1]), [_text(name) for name in shown.columns], rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(shown.shape[0]), [_text(name) for name in shown.index], fontsize=8)
    axes.set_xlabel(_text(table.columns.names))
    axes.set_title(" ".join([_text(title), said, more]).strip(), fontsize=9, loc="left")
    middle = float(np.ma.masked_invalid(norm(finite)).mean()) if finite.size else 0.5
    for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
        dark = float(norm(values[i, j])) < min(0.6, middle + 0.1)
        axes.text(j, i, f"{values[i, j]:.3g}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(picture, ax=axes, shrink=0.8)
    return save_figure(figure, path)


def _lowest(table: pd.DataFrame, most: int) -> tuple[pd.DataFrame, str]:
    """The rows with the lowest values in their own order, and in words that others were left out."""
    if len(table) <= most:
        return table, ""
    kept = table.min(axis=1).rank(method="first") <= most
    return table[kept], f"({most} of {len(table)})"


def _text(name: Any) -> str:
    parts = [name] if isinstance(name, str) or not hasattr(name, "__iter__") else list(name)
    text = ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts if part is not None)
    return text.replace("$", r"\$")
