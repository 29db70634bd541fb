"""Pictures of quantised networks."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from fewstep.dashboards.drawings import save_figure
from fewstep.dashboards.lines import ACCENT, MUTED


def draw_temporal(text: str, path: Path) -> Path:
    """Relative error and cosine similarity of the temporal features by timestep, a line a method.

    `text` is the CSV with columns method, time, cosine and relative_error, comments marked by #.
    Raises ConfigurationError for a file that is no .png, .svg or .pdf, StorageError where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = pd.read_csv(io.StringIO(text), comment="#")
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for k, (name, rows) in enumerate(table.groupby("method", sort=False)):
        rows = rows.sort_values("time")
        ours = "tfmq" in str(name)
        colour = ACCENT if ours else MUTED[k % len(MUTED)]
        style = {"color": colour, "marker": "o" if ours else "s", "markersize": 3, "label": str(name)}
        left.plot(rows["time"], rows["relative_error"], **style)
        right.plot(rows["time"], 1 - rows["cosine"].clip(upper=1 - 1e-12), **style)
    left.set(xlabel="timestep", ylabel="relative error", yscale="log", title="Temporal features")
    right.set(xlabel="timestep", ylabel="1 − cosine similarity", yscale="log")
    left.legend(fontsize=6)
    return save_figure(figure, path)
