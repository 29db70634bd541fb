"""A table of results: what the order of a solver buys at one number of calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from benchmarks.tables.engine import Engine, Picture, Sheet, Subject, Table, measured
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid


class Orders(Table):
    """Presets of rising order on one grid."""

    study: ClassVar[str] = "orders"

    model: str = "digits-ddpm"
    presets: tuple[str, ...] = ("ddim", "dpmpp-2m", "dpmpp-3m")
    nfe: int = 5
    images: int = 750

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """A row a preset."""
        noise, rung = find_model(self.model).noise, self.reported_on(self.images)
        work = [(preset_on_grid(f"{name}/uniform-t", noise, self.nfe), name) for name in self.presets]
        records = engine.records(Subject(self.model), work, rung)
        rows = [{"preset": r.origin, "nfe": r.nfe, **measured(r, r.origin), "images": r.images} for r in records]
        yield Sheet(engine.name, rows, {"report": rung.seed})


ORDERS = Orders()
