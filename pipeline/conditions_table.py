"""Inpainting and layouts side by side with what needs no network: distances, errors and agreement on held-out images.

Inpainting: errors in the hole and on known pixels, against fills and the autoencoder's own reconstruction. Layouts: how
far the layout of what was made agrees with the given one, between samples that were given none and reconstructions.
The preset is chosen on training images under search seeds; what is shown is computed on held-out images under report
seeds. Every group of images is kept as moments and sums, so that the same command goes on after a kill.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.baseline import GRIDS_TO_ZERO, known_names, register
from fewstep.pipeline.campaign import Subject, evaluate_missing
from fewstep.pipeline.evaluator import content_key
from fewstep.pipeline.executors.base import ExecutionSettings, make_executor
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.settings import REPORT_SEED_OFFSET
from fewstep.search_spaces.ode import ADAPTIVE, OdeSettings, Sampler
from fewstep.search_spaces.presets import PRESETS
from fewstep.tasks.data import load_dataset
from fewstep.tasks.metrics.agreement import (
    hidden_rms,
    hole_sums,
    known_rms,
    layout_sums,
    mean_iou,
    pixel_accuracy,
)
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.interval import frechet_interval, sums_interval
from fewstep.tasks.metrics.moments import Moments, merge_all
from fewstep.tasks.metrics.reference import load_reference
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.decoder import load_decoder, load_encoder
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.fills import mean_fill, nearest_fill
from fewstep.tasks.models.image_condition import layout_of
from fewstep.tasks.models.sources import Sources
from fewstep.tasks.sampling.grids import GRIDS, preset_on_grid
from fewstep.tasks.worker import GROUP, Task, WorkerSettings

STUDY = "conditions-table"
INPAINT, LAYOUT = "inpaint", "layout"
# Images (B, C, H, W) of a range of indices.
Make = Callable[[range], Tensor]
Tell = Callable[[str], None]


class ConditionsTableSettings(BaseModel):
    """Everything that decides what the table holds; `plain` is the model without a condition, the layouts' floor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inpaint: str
    layout: str
    plain: str
    nfe: PositiveInt = 6
    presets: tuple[str, ...] = ("ddim", "dpmpp-2m", "unipc-2-bh2", "deis-3")
    grids: tuple[str, ...] = GRIDS_TO_ZERO
    screen_images: PositiveInt = 500
    images: PositiveInt = 2000
    tolerance: float = 1e-5
    seed: NonNegativeInt = 0
    features: str = "auto"
    reference: str = "auto"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for names, kind, known in ((self.presets, "preset", PRESETS), (self.grids, "grid", GRIDS)):
            known_names(names, kind, tuple(known))
        if self.images % GROUP:
            raise ValueError(f"{self.images} images are no whole groups of {GROUP}")
        return self

    @property
    def report_seed(self) -> int:
        """Seed of the noise and of the holes of what is shown."""
        return self.seed + REPORT_SEED_OFFSET


@dataclass(frozen=True)
class ConditionRow:
    """One method on one task; root mean square errors are of values in [-1, 1], what does not apply is empty."""

    task: str
    method: str
    schedule: str
    nfe: float | None
    metric: str
    value: float
    low: float | None
    high: float | None
    known_rms: float | None = None
    hidden_rms: float | None = None
    hidden_rms_low: float | None = None
    hidden_rms_high: float | None = None
    pixel_accuracy: float | None = None
    pixel_accuracy_low: float | None = None
    pixel_accuracy_high: float | None = None
    mean_iou: float | None = None
    mean_iou_low: float | None = None
    mean_iou_high: float | None = None
    images: int = 0


@dataclass(frozen=True)
class Way:
    """One row to fill: by a sampler on a model, or by a function of the true images."""

    method: str
    name: str
    sampler: Sampler | None = None
    model: str = ""
    make: Make | None = None


@dataclass(frozen=True)
class ConditionsTable:
    """The rows, and the first images of each by (task, method), the truth and what was shown among them."""

    rows: list[ConditionRow]
    pictures: dict[tuple[str, str], Tensor]


def run(
    settings: ConditionsTableSettings,
    root: Path,
    execution: ExecutionSettings,
    on_record: OnRecord | None = None,
    tell: Tell | None = None,
) -> ConditionsTable:
    """Choose presets, evaluate what is missing; EvaluationError where a method cannot be evaluated."""
    for model, kind in ((settings.inpaint, INPAINT), (settings.layout, LAYOUT), (settings.plain, "")):
        shown = find_model(model).shown
        if shown != kind:
            raise ConfigurationError(f"{model} is of kind {shown or 'plain'!r}, not {kind or 'plain'!r}")
    register(settings, settings.inpaint, root, STUDY)
    rows: list[ConditionRow] = []
    pictures: dict[tuple[str, str], Tensor] = {}
    for kind in (INPAINT, LAYOUT):
        runner = _Runner(settings, kind, root, execution, on_record, tell)
        rows += runner.rows()
        pictures |= runner.pictures
    return ConditionsTable(rows, pictures)


class _Runner:
    """One task of the table."""

    def __init__(
        self,
        settings: ConditionsTableSettings,
        kind: str,
        root: Path,
        execution: ExecutionSettings,
        on_record: OnRecord | None,
        tell: Tell | None,
    ) -> None:
        self.settings, self.kind, self.root, self.execution = settings, kind, root, execution
        self.on_record, self.tell = on_record, tell
        self.model = settings.inpaint if kind == INPAINT else settings.layout
        self.files = find_model(self.model)
        assert self.files.condition is not None
        self.condition = self.files.condition
        self.shown = Conditions(source="test", source_seed=settings.report_seed)
        self.sources = Sources(self.files, "cpu", self.shown)
        self.extractor: FeatureExtractor = make_extractor(settings.features, self.files, "cpu")
        moments, self.reference_hash = load_reference(settings.reference, self.files, settings.features, self.extractor)
        self.reference = FrechetReference.of(moments)
        self.pictures: dict[tuple[str, str], Tensor] = {}

    def rows(self) -> list[ConditionRow]:
        first = range(min(self.settings.images, 12))
        truth, holes = self.sources.images(first), self.sources.holes(first)
        self.pictures[self.kind, "held out"] = truth
        if self.kind == INPAINT:
            self.pictures[self.kind, "shown"] = torch.where(holes, torch.zeros_like(truth), truth)
        else:
            classes = layout_of(truth, self.condition.thresholds)[:, None].float()
            self.pictures[self.kind, "shown"] = 2 * classes / (self.condition.classes - 1) - 1
        return [self._row(way) for way in self._ways()]

    def _ways(self) -> list[Way]:
        s = self.settings
        exact = OdeSettings(atol=s.tolerance, rtol=s.tolerance)
        best, name = self._best_preset()
        sampled = [Way(ADAPTIVE, exact.name, exact, self.model), Way(name.partition("/")[0], name, best, self.model)]
        reconstruction = Way("reconstruction", "autoencoder", make=self._reconstructed)
        if self.kind == LAYOUT:
            return [*sampled, reconstruction, Way("no layout", exact.name, exact, s.plain)]
        fills = [Way("mean fill", "", make=self._mean), Way("nearest neighbour", "", make=self._nearest)]
        return [*sampled, *fills, reconstruction]

    def _best_preset(self) -> tuple[Sampler, str]:
        s = self.settings
        work: list[tuple[Sampler, str]] = []
        for name in (f"{preset}/{grid}" for preset in s.presets for grid in s.grids):
            try:
                work.append((preset_on_grid(name, self.files.noise, s.nfe), name))
            except ConfigurationError:
                continue
        if not work:
            raise ConfigurationError(f"no preset takes {s.nfe} calls on these grids: give others")
        subject = Subject(self.model, s.features, s.reference, Conditions(source="train", source_seed=s.seed))
        rung = Rung("screen", "moments", s.screen_images, s.seed)
        records = evaluate_missing(subject, work, rung, self.root, self.execution, STUDY, self.on_record)
        values = [(r.value, i) for i, r in enumerate(records) if r.value is not None]
        if not values:
            raise EvaluationError(f"no preset could be evaluated on {self.model}: {records[0].error}")
        return work[min(values)[1]]

    def _row(self, way: Way) -> ConditionRow:
        groups = self._groups(way)
        if self.tell:
            self.tell(f"{self.kind:8} {way.method:20} {sum(m.count for m, _, _ in groups):,} images")
        moments, counts = [m for m, _, _ in groups], [m.count for m, _, _ in groups]
        sums = [s for _, s, _ in groups]
        value = self.reference.distance(merge_all(moments))
        ends = frechet_interval(self.reference, moments)
        total, count = np.sum(sums, axis=0), sum(counts)
        calls = sum(c for _, _, c in groups)
        row = ConditionRow(
            task=self.kind,
            method=way.method,
            schedule=way.name,
            nfe=calls / count if way.sampler is not None else None,
            metric=self.extractor.name,
            value=value,
            low=ends.low if ends else None,
            high=ends.high if ends else None,
            images=count,
        )
        if self.kind == INPAINT:
            hidden = sums_interval(hidden_rms, sums, counts)
            return replace(
                row,
                known_rms=known_rms(total),
                hidden_rms=hidden_rms(total),
                hidden_rms_low=hidden.low if hidden else None,
                hidden_rms_high=hidden.high if hidden else None,
            )
        right, overlap = sums_interval(pixel_accuracy, sums, counts), sums_interval(mean_iou, sums, counts)
        return replace(
            row,
            pixel_accuracy=pixel_accuracy(total),
            pixel_accuracy_low=right.low if right else None,
            pixel_accuracy_high=min(1.0, right.high) if right else None,
            mean_iou=mean_iou(total),
            mean_iou_low=overlap.low if overlap else None,
            mean_iou_high=min(1.0, overlap.high) if overlap else None,
        )

    def _groups(self, way: Way) -> list[tuple[Moments, np.ndarray[Any, np.dtype[np.float64]], int]]:
        """Moments, sums and denoiser calls of each group, from disk where they are there."""
        starts = range(0, self.settings.images, GROUP)
        missing = [start for start in starts if not self._path(way, start).is_file()]
        if way.sampler is None:
            assert way.make is not None
            for start in missing:
                self._keep(way, start, way.make(range(start, start + GROUP)), 0)
        elif missing:
            self._sample(way, way.sampler, missing)
        picture = self._path(way, 0).with_suffix(".pictures.npy")
        self.pictures[self.kind, way.method] = torch.from_numpy(np.load(picture))
        return [_read(self._path(way, start)) for start in starts]

    def _sample(self, way: Way, sampler: Sampler, starts: Sequence[int]) -> None:
        asked = self.shown if way.model == self.model else Conditions()
        settings = WorkerSettings(way.model, self.settings.features, self.execution.device, conditions=asked)
        executor, waiting = make_executor(self.execution, settings), list(reversed(starts))
        try:
            while waiting or executor.in_flight:
                while waiting and executor.in_flight < max(1, executor.capacity):
                    start = waiting.pop()
                    seed = self.settings.report_seed
                    executor.submit(Task(f"{way.method}-{start}", "images", sampler.to_json(), seed, start, GROUP))
                result = executor.next()
                if result.images is None:
                    raise EvaluationError(f"{way.method} could not be sampled: {result.error}")
                self._keep(way, result.task.start, torch.tensor(result.images), result.denoiser_calls)
        finally:
            executor.close()

    def _keep(self, way: Way, start: int, images: Tensor, calls: int) -> None:
        indices = range(start, start + len(images))
        truth = self.sources.images(indices)
        if self.kind == INPAINT:
            sums = hole_sums(images, truth, self.sources.holes(indices))
        else:
            edges, classes = self.condition.thresholds, self.condition.classes
            sums = layout_sums(layout_of(images, edges), layout_of(truth, edges), classes)
        moments, path = Moments.of(self.extractor(images)), self._path(way, start)
        path.parent.mkdir(parents=True, exist_ok=True)
        if start == 0:
            np.save(path.with_suffix(".pictures.npy"), images[:12].numpy())
        aside = path.with_suffix(".tmp.npz")
        np.savez(aside, count=moments.count, mean=moments.mean, scatter=moments.scatter, sums=sums, calls=calls)
        os.replace(aside, path)

    @cached_property
    def _plain_hash(self) -> str:
        return find_model(self.settings.plain).hash

    def _path(self, way: Way, start: int) -> Path:
        key = content_key(
            kind=self.kind,
            method=way.method,
            sampler=way.sampler.hash if way.sampler is not None else "",
            model=self._plain_hash if way.model == self.settings.plain else self.files.hash,
            condition=self.files.hash,
            shown=self.shown.hash,
            features=self.extractor.hash,
            reference=self.reference_hash,
            seed=self.settings.report_seed,
        )
        return self.root / "groups" / key / f"{start:06d}.npz"

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


def _read(path: Path) -> tuple[Moments, np.ndarray[Any, np.dtype[np.float64]], int]:
    with np.load(path) as kept:
        moments = Moments(int(kept["count"]), kept["mean"], kept["scatter"])
        return moments, kept["sums"], int(kept["calls"])


def markdown(rows: Sequence[ConditionRow], note: str) -> str:
    """Two tables, one a task."""
    parts = []
    for kind, heads in ((INPAINT, ("known pixels", "hole")), (LAYOUT, ("pixel accuracy", "mean IoU"))):
        mine = [r for r in rows if r.task == kind]
        if not mine:
            continue
        names = [f"RMS error, {h}" for h in heads] if kind == INPAINT else list(heads)
        lines = [f"| {kind} | calls | {mine[0].metric} | {names[0]} | {names[1]} |", "|---" * 5 + "|"]
        for r in mine:
            if kind == INPAINT:
                cells = [f"{r.known_rms:g}", _cell(r.hidden_rms, r.hidden_rms_low, r.hidden_rms_high, 4)]
            else:
                cells = [
                    _cell(r.pixel_accuracy, r.pixel_accuracy_low, r.pixel_accuracy_high, 3),
                    _cell(r.mean_iou, r.mean_iou_low, r.mean_iou_high, 3),
                ]
            calls = "" if r.nfe is None else f"{r.nfe:.1f}".removesuffix(".0")
            name = r.schedule if "/" in r.schedule else r.method
            lines.append(f"| {name} | {calls} | {_cell(r.value, r.low, r.high, 2)} | {cells[0]} | {cells[1]} |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, note])


def _cell(value: float | None, low: float | None, high: float | None, digits: int) -> str:
    if value is None:
        return ""
    ends = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{value:.{digits}f}{ends}"
