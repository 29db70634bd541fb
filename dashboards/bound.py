"""Picture of how tight the Wasserstein-2 bound is where the truth is known."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from fewstep.dashboards.drawings import save_figure
from fewstep.dashboards.lines import ACCENT, MUTED

FORMS = {
    "bound": ("theorem", MUTED[0], "o"),
    "sharp": ("without Young's inequality", MUTED[1], "s"),
    "profile": ("by growth rate and error at each t", ACCENT, "^"),
}


def draw_tightness(text: str, path: Path) -> Path:
    """Bound / true W2 of each case, against the size of the velocity's error and against L.

    `text` is the CSV with columns truth, error, velocity and one for each form of the bound, comments marked by #.
    Raises ConfigurationError for a file that is no .png, .svg or .pdf, StorageError where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = pd.read_csv(io.StringIO(text), comment="#")
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axis, column in zip(panels, ("error", "velocity"), strict=True):
        for name, (label, colour, marker) in FORMS.items():
            ratio = table[name] / table["truth"]
            axis.scatter(table[column], ratio, s=14, color=colour, marker=marker, alpha=0.8, linewidths=0, label=label)
        axis.axhline(1.0, color="#374151", linewidth=0.8)
        axis.set(xscale="log", yscale="log")
    panels[0].set(xlabel="root of the mean squared error of the velocity", ylabel="bound / true W2")
    panels[1].set(xlabel="Lipschitz constant L of the learned velocity")
    panels[0].legend(fontsize=7)
    return save_figure(figure, path)
