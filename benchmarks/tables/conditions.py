"""Inpainting and layouts side by side with what needs no network: distances, errors and agreement on held-out images.

Inpainting: errors in the hole and on known pixels, against fills and the autoencoder's own reconstruction. Layouts: how
far the layout of what was made agrees with the given one, between samples that were given none and reconstructions.
The preset is chosen on training images under search seeds; what is shown is computed on held-out images under report
seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from benchmarks.tables.engine import (
    CALLS,
    GRIDS_TO_ZERO,
    GROUP,
    Conditions,
    Engine,
    Grids,
    Group,
    Picture,
    Presets,
    Row,
    Sheet,
    Subject,
    Table,
    on_grids,
)
from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.reports.pictures import COLUMNS, write_grid
from fewstep.search_spaces.ode import ADAPTIVE, OdeSettings, Sampler
from fewstep.tasks.data import load_dataset
from fewstep.tasks.metrics.agreement import hidden_rms, hole_sums, known_rms, layout_sums, mean_iou, pixel_accuracy
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.interval import frechet_interval, sums_interval
from fewstep.tasks.metrics.moments import Moments, merge_all
from fewstep.tasks.metrics.reference import load_reference
from fewstep.tasks.models.decoder import load_decoder, load_encoder
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.fills import mean_fill, nearest_fill
from fewstep.tasks.models.image_condition import layout_of
from fewstep.tasks.models.sources import Sources

INPAINT, LAYOUT = "inpaint", "layout"
NOTES = {"rms": "of values in [-1, 1]", "hidden": "pixels in the hole; known ones are put back after decoding"}
Sums = np.ndarray[Any, np.dtype[np.float64]]


class ConditionsTable(Table):
    """`plain` is the model without a condition, the layouts' floor."""

    study: ClassVar[str] = "conditions-table"

    inpaint: str = "fashion-lfm-inpaint"
    layout: str = "fashion-lfm-layout"
    plain: str = "fashion-lfm"
    nfe: PositiveInt = 6
    presets: Presets = ("ddim", "dpmpp-2m", "unipc-2-bh2", "deis-3")
    grids: Grids = GRIDS_TO_ZERO
    screen_images: PositiveInt = 250
    images: int = Field(2000, ge=GROUP, multiple_of=GROUP)
    tolerance: float = Field(1e-5, gt=0)

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """A row a way on each task."""
        for model, kind in ((self.inpaint, INPAINT), (self.layout, LAYOUT), (self.plain, "")):
            shown = find_model(model).shown
            if shown != kind:
                raise ConfigurationError(f"{model} is of kind {shown or 'plain'!r}, not {kind or 'plain'!r}")
        rows, pictures = list[Row](), list[tuple[str, Any]]()
        for kind in (INPAINT, LAYOUT):
            task = Held(self, kind, engine)
            pictures += task.shown_pictures()
            for way in task.ways():
                rows.append(task.row(way))
                pictures.append((way.method, task.picture(way).numpy()))
                yield Sheet(engine.name, rows, {"screen": self.seed, "report": task.seed}, NOTES)
        yield Picture(engine.name, lambda path: write_grid(pictures, path))


@dataclass(frozen=True)
class Way:
    """One row to fill: by a sampler on a model, or by a function of the indices of the true images."""

    method: str
    name: str
    by: Sampler | Callable[[range], Tensor]
    model: str = ""


class Held:
    """One task on held-out images."""

    def __init__(self, asked: ConditionsTable, kind: str, engine: Engine) -> None:
        self.asked, self.kind, self.engine = asked, kind, engine
        self.model = asked.inpaint if kind == INPAINT else asked.layout
        self.seed = asked.reported_on(1).seed
        self.files = find_model(self.model)
        assert self.files.condition is not None
        self.condition = self.files.condition
        self.shown = Conditions(source="test", source_seed=self.seed)
        self.sources = Sources(self.files, "cpu", self.shown)
        self.extractor = make_extractor("auto", self.files, "cpu")
        moments, self.reference_hash = load_reference("auto", self.files, "auto", self.extractor)
        self.reference = FrechetReference.of(moments)

    def ways(self) -> list[Way]:
        """What is compared."""
        exact = OdeSettings(atol=self.asked.tolerance, rtol=self.asked.tolerance)
        name, best = self._best_preset()
        sampled = [Way(ADAPTIVE, exact.name, exact, self.model), Way(name.partition("/")[0], name, best, self.model)]
        reconstruction = Way("reconstruction", "autoencoder", self._reconstructed)
        if self.kind == LAYOUT:
            return [*sampled, reconstruction, Way("no layout", exact.name, exact, self.asked.plain)]
        return [*sampled, Way("mean fill", "", self._mean), Way("nearest neighbour", "", self._nearest), reconstruction]

    def _best_preset(self) -> tuple[str, Sampler]:
        s = self.asked
        entries = list(on_grids(self.files, s.presets, s.grids, s.nfe).items())
        if not entries:
            raise ConfigurationError(f"no preset takes {s.nfe} calls on these grids: give others")
        subject = Subject(self.model, conditions=Conditions(source="train", source_seed=s.seed))
        work = [(sampler, name) for name, sampler in entries]
        records = self.engine.records(subject, work, s.chosen_on("screen", s.screen_images))
        values = [(r.value, i) for i, r in enumerate(records) if r.value is not None]
        if not values:
            raise EvaluationError(f"no preset could be evaluated on {self.model}: {records[0].error}")
        return entries[min(values)[1]]

    def row(self, way: Way) -> Row:
        """One way on one task; what does not apply is empty."""
        key = {
            "kind": self.kind,
            "method": way.method,
            "sampler": "" if callable(way.by) else way.by.hash,
            "model": find_model(way.model or self.model).hash,
            "condition": self.files.hash,
            "shown": self.shown.hash,
            "features": self.extractor.hash,
            "reference": self.reference_hash,
            "seed": self.seed,
        }
        groups = self.engine.groups(key, self.asked.images, partial(self._made, way))
        self.engine.tell(f"{self.kind:8} {way.method:20} {self.asked.images:,} images")
        moments, counts = [m for m, _ in groups], [m.count for m, _ in groups]
        sums = [np.array([s[name] for name in sorted(s) if name != CALLS]) for _, s in groups]
        ends = frechet_interval(self.reference, moments)
        count, total = sum(counts), np.sum(sums, axis=0)

        def figure(name: str, of: Callable[[Sums], float], kind: str, most: float = np.inf) -> Row:
            within = sums_interval(of, sums, counts) if kind == self.kind else None
            return {
                name: of(total) if kind == self.kind else None,
                f"{name}_low": within.low if within else None,
                f"{name}_high": min(most, within.high) if within else None,
            }

        return (
            {
                "task": self.kind,
                "method": way.method,
                "schedule": way.name,
                "nfe": None if callable(way.by) else sum(s[CALLS] for _, s in groups) / count,
                "metric": self.extractor.name,
                "value": self.reference.distance(merge_all(moments)),
                "low": ends.low if ends else None,
                "high": ends.high if ends else None,
                "known_rms": known_rms(total) if self.kind == INPAINT else None,
            }
            | figure("hidden_rms", hidden_rms, INPAINT)
            | figure("pixel_accuracy", pixel_accuracy, LAYOUT, 1.0)
            | figure("mean_iou", mean_iou, LAYOUT, 1.0)
            | {"images": count}
        )

    def _made(self, way: Way, starts: Sequence[int]) -> Iterator[tuple[int, Group]]:
        for start, images, calls in self._images(way, starts, GROUP):
            indices = range(start, start + len(images))
            truth, edges = self.sources.images(indices), self.condition.thresholds
            if self.kind == INPAINT:
                sums = hole_sums(images, truth, self.sources.holes(indices))
            else:
                sums = layout_sums(layout_of(images, edges), layout_of(truth, edges), self.condition.classes)
            named = {f"sum {i:04d}": float(value) for i, value in enumerate(sums)}
            yield start, (Moments.of(self.extractor(images)), {CALLS: float(calls), **named})

    def _images(self, way: Way, starts: Sequence[int], count: int) -> Iterator[tuple[int, Tensor, int]]:
        if callable(way.by):
            make = way.by
            yield from ((start, make(range(start, start + count)), 0) for start in starts)
            return
        subject = Subject(way.model, conditions=self.shown if way.model == self.model else Conditions())
        for start, images, calls in self.engine.sampled(subject, way.by, self.seed, starts, count):
            yield start, torch.tensor(images), calls

    def picture(self, way: Way) -> Tensor:
        """The first images of a way."""
        ((_, images, _),) = self._images(way, [0], COLUMNS)
        return images

    def shown_pictures(self) -> list[tuple[str, Any]]:
        """The first true images, and what was shown of them."""
        first = range(COLUMNS)
        truth, holes = self.sources.images(first), self.sources.holes(first)
        if self.kind == INPAINT:
            shown = torch.where(holes, torch.zeros_like(truth), truth)
        else:
            shown = 2 * layout_of(truth, self.condition.thresholds)[:, None].float() / (self.condition.classes - 1) - 1
        return [("held out", truth.numpy()), ("shown", shown.numpy())]

    def _mean(self, indices: range) -> Tensor:
        return mean_fill(self.sources.images(indices), self.sources.holes(indices))

    def _nearest(self, indices: range) -> Tensor:
        training = torch.from_numpy(load_dataset(self.condition.dataset).images)
        return nearest_fill(self.sources.images(indices), self.sources.holes(indices), training)

    @torch.no_grad()
    def _reconstructed(self, indices: range) -> Tensor:
        """What the autoencoder makes of the whole image, with known pixels put back: the best that latents can say."""
        encode, decode = load_encoder(self.files, "cpu"), load_decoder(self.files, "cpu")
        back = decode(encode(self.sources.images(indices))).clamp(-1, 1)
        return self.sources.finish(back, indices)


FASHION = ConditionsTable()
