"""What guidance does to a sampler: the judge's accuracy and the Frechet distance at each scale, from the same noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from benchmarks.tables.engine import Conditions, Engine, Picture, Sheet, Subject, Table, measured
from fewstep.search_spaces.ode import ADAPTIVE, FIXED_CALLS, Sampler, parse_ode, with_guidance
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.models.judge import find_judge
from fewstep.tasks.sampling.grids import parse_schedule


class Guidance(Table):
    """`samplers` are dopri5, heun@6, PRESET/GRID@CALLS or files; NAME=SAMPLER names the rows. Scale 0 asks nothing."""

    study: ClassVar[str] = "guidance-table"

    model: str = "fashion-lfm"
    judge: str = "fashion"
    samplers: tuple[str, ...] = Field(
        ("heun@20", "unipc-3-bh2/uniform-t-zero@6", "fewstep=docs/results/schedules/fashion_flow_guided_nfe6.json"),
        min_length=1,
    )
    scales: tuple[NonNegativeFloat, ...] = Field((0, 1, 1.25, 1.5, 2, 3, 4), min_length=1)
    labels: str = "balanced"
    images: PositiveInt = 2000

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """A row a sampler and scale."""
        files, rung = find_model(self.model), self.reported_on(self.images)
        entries = [(*_named(text, files), scale) for text in self.samplers for scale in self.scales]
        work = [(with_guidance(sampler, scale), f"{method}:{scale:g}") for method, sampler, scale in entries]
        subject = Subject(self.model, conditions=Conditions(labels=self.labels), judge=self.judge)
        rows = []
        for record, (method, sampler, scale) in zip(engine.records(subject, work, rung), entries, strict=True):
            m, found = record.metrics, measured(record, f"{method} at guidance {scale:g}")
            accuracy = {name: m[name] for name in ("accuracy", "accuracy_low", "accuracy_high")}
            head = {"model": record.model, "method": method, "guidance": float(scale), "nfe": m.get("nfe", record.nfe)}
            tail = {"images": record.images, "schedule": getattr(sampler, "name", "") or sampler.hash}
            rows.append(head | accuracy | found | tail)
        notes = {"accuracy": f"share of images in which judge {self.judge} sees the label, Wilson interval"}
        card = find_judge(self.judge) / "card.json"
        if card.is_file():
            said = json.loads(card.read_text())
            notes["judge"] = f"accuracy {said['accuracy']} on {said['accuracy_on']} of the data"
        yield Sheet(engine.name, rows, {"report": rung.seed}, notes)


def _named(text: str, files: ModelFiles) -> tuple[str, Sampler]:
    name, equals, given = text.partition("=")
    given = given if equals else text
    method = given.partition("@")[0]
    ode = method == ADAPTIVE or (method in FIXED_CALLS and given != method)
    sampler: Sampler = parse_ode(given) if ode else parse_schedule(given, files.noise)
    return name if equals or "@" in text else Path(text).stem, sampler


# On seeds that the search of the schedule has not seen either.
FASHION = Guidance(seed=1_000_003)
