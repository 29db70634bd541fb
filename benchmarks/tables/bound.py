"""The Wasserstein-2 bound of latent flow matching: beside the truth where that is known, and of a trained model.

Of random mixtures with a linear decoder the distance itself is known. Of a model every term comes with its 95% interval
and with what it is: certified, or an estimate.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import pandas as pd
from pydantic import PositiveInt

from benchmarks.tables.engine import Engine, Picture, Row, Sheet, Table
from fewstep.dashboards.drawings import save_figure
from fewstep.dashboards.lines import ACCENT, MUTED
from fewstep.errors import EvaluationError
from fewstep.tasks.flow.tightness import tightness
from fewstep.tasks.flow.trained import Plan, find_data, measure
from fewstep.tasks.models.files import find_model
from fewstep.tasks.worker import check_device

FORMS = {
    "bound": ("theorem", MUTED[0], "o"),
    "sharp": ("without Young's inequality", MUTED[1], "s"),
    "profile": ("by growth rate and error at each t", ACCENT, "^"),
}
INTERVAL = (
    "95%, normal, from the scatter of images within each time; of a bound: the ends of its terms put in (at least 90% "
    "together); of a Lipschitz constant: from what was found to what is certified"
)


class Mixtures(Table):
    """Random mixtures whose distance is known, from number `seed` on."""

    study: ClassVar[str] = "bound"

    cases: PositiveInt = 100

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """A row a case; EvaluationError, after the table is written, where a bound is below the truth."""
        found = tightness(self.cases, self.seed)
        rows = [asdict(case) for case in found]
        notes = {"interval": "none: closed forms and quadrature"}
        yield Sheet(engine.name, rows, {"cases from": self.seed}, notes)
        yield Picture(engine.name, lambda path: draw_tightness(rows, path))
        held = sum(case.holds for case in found)
        engine.tell(f"the bound held in {held} of {self.cases} cases")
        if held < self.cases:
            raise EvaluationError(f"the bound held in {held} of {self.cases} cases")


class Trained(Table):
    """A trained model; `data` is auto (what it was trained on), a data set or a folder of images."""

    study: ClassVar[str] = "bound"

    model: str = "fashion-lfm"
    labels: str = "balanced"
    data: str = "auto"
    images: PositiveInt = 2000
    points: PositiveInt = 128
    times: PositiveInt = 32
    iterations: PositiveInt = 20

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """A row a term."""
        device = engine.execution.device
        check_device(device)
        files = find_model(self.model)
        plan = Plan(self.images, self.points, self.times, self.iterations, self.seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")  # what torch.func imports
            found = measure(files, find_data(files, self.data), plan, self.labels, device, engine.tell)
        notes = {"interval": INTERVAL, **{f"note {i + 1}": note for i, note in enumerate(found.notes)}}
        yield Sheet(engine.name, [asdict(term) for term in found.terms], {"noise": self.seed}, notes)


def draw_tightness(rows: list[Row], path: Path) -> Path:
    """Bound / true W2 of each case, against the size of the velocity's error and against L."""
    from matplotlib.figure import Figure

    table = pd.DataFrame(rows)
    figure = Figure(figsize=(10, 4), layout="constrained")
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


MIXTURES = Mixtures()
FASHION = Trained()
