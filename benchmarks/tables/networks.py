"""Networks that were trained on the same latents, by stock samplers at few calls: the best of each at each NFE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field, PositiveInt

from benchmarks.tables.engine import Engine, Grids, Picture, Presets, Row, Sheet, Table
from benchmarks.tables.flow import ADAPTIVE, EULER, HEUN, Competition, Flow

NAMES = {ADAPTIVE: "dopri5", EULER: "Euler", HEUN: "Heun"}


class Networks(Table):
    """Every class alike, without guidance. Grids and presets are chosen on `screen_images` of other noise.

    `sampler` is the row's kind: dopri5 at `tolerance`, Euler, Heun, or the best preset, whose name is in `schedule`.
    """

    study: ClassVar[str] = "networks-table"

    models: tuple[str, ...] = Field(("fashion-lfm", "fashion-lfm-dit"), min_length=1)
    labels: str = "balanced"
    judge: str = "fashion"
    nfes: tuple[int, ...] = (4, 6, 8, 10)
    presets: Presets = ("dpmpp-2m", "unipc-2-bh2")
    grids: Grids = ("uniform-t-zero", "uniform-lambda-zero", "karras-zero")
    screen_images: PositiveInt = 200
    report_images: PositiveInt = 1000
    tolerance: float = Field(1e-3, gt=0)

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """The rows of one model after the other."""
        shared = {name: getattr(self, name) for name in Flow.model_fields if name in type(self).model_fields}
        notes = {
            "chosen": f"grids and presets on {self.screen_images} images of the screen's seed",
            "tolerance": f"{self.tolerance:g}, of dopri5",
            "accuracy": f"of judge {self.judge}, Wilson interval",
        }
        seeds = {"screen": self.seed, "report": self.reported_on(1).seed}
        rows: list[Row] = []
        for model in self.models:
            told = {"settings": ("conditional",), "guidances": (1.0,), "found": (), "found_conditional": ()}
            asked = Flow.build(**{**shared, "model": model, **told})
            for row in Competition(asked, "conditional", engine).run():
                rows.append({"sampler": NAMES.get(row["method"], "best preset"), **row})
            yield Sheet(engine.name, rows, seeds, notes)


FASHION = Networks()
