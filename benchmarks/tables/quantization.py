"""Quantisations of one model side by side: Frechet distance, paired error, size, temporal features, cost.

Every method samples with the same schedule from the same noise. Networks are calibrated once and kept by content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, PositiveInt, model_validator

from benchmarks.tables.engine import (
    Conditions,
    Engine,
    EvaluationRecord,
    Picture,
    Row,
    Rung,
    Sheet,
    Subject,
    Table,
    measured,
)
from fewstep.dashboards.drawings import save_figure
from fewstep.dashboards.lines import ACCENT, MUTED
from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.quantization import FULL_PRECISION, QuantizationConfig, parse_config
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.quantization.build import Recipe, cached
from fewstep.tasks.quantization.storage import find_quantized, from_pretrained
from fewstep.tasks.quantization.temporal import TemporalError, temporal_errors
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import parse_schedule

FULL = "fp32"
# Panels of a row of the picture, the share by which lines that are one differ, and a name's share of a panel's height.
PANELS, SAME, NAME_HEIGHT = 2, 0.02, 0.07
# A method's name with this behind it runs in integers.
INTEGER = "@int8"
GRID = tuple(
    f"{bits}-{procedure}-{coverage}"
    for bits in ("w8a8", "w4a8", "w4a32")
    for coverage in ("paper", "full")
    for procedure in ("naive", "qdiffusion", "tfmq")
)
ONE_BY_ONE = (
    "w4a8-hybrid-full",
    "w4a32-hybrid-full",
    "w4a8-published-paper",
    "w4a8-published-full",
    "w4a8-tfmq-full+tib=nearest",
    "w4a8-tfmq-full+fsc=tib",
    "w4a8-tfmq-full+fsc=none",
    "w4a8-tfmq-full+tib=nearest+fsc=none",
    "w4a8-tfmq-full+tib=table",
    "w8a8-tfmq-paper+fsc=tib",
    "w8a8-tfmq-paper+fsc=tib@int8",
)


class Quantization(Table):
    """`schedule` is a file or PRESET/GRID@CALLS; methods are config names, run in integers as NAME@int8."""

    study: ClassVar[str] = "quantization"

    model: str = "fashion-ddpm"
    labels: str = "balanced"
    schedule: str = "docs/results/schedules/fashion_nfe8.json"
    methods: tuple[str, ...] = Field((*GRID, *ONE_BY_ONE), min_length=1)
    images: PositiveInt = 5000
    paired_images: PositiveInt = 1000

    @model_validator(mode="after")
    def _compares(self) -> Self:
        try:
            configs = self.configs
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        if not any(configs.values()):
            raise ValueError("there is nothing to compare: give at least one method besides fp32")
        return self

    @property
    def configs(self) -> dict[str, QuantizationConfig | None]:
        """The config of every method."""
        names = dict.fromkeys((FULL, *self.methods))
        return {name: None if name == FULL else parse_config(name.removesuffix(INTEGER)) for name in names}

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """A row a method, and one a method and timestep."""
        files, asked = find_model(self.model), Conditions(labels=self.labels)
        asked.check(files)
        schedule, seeds = parse_schedule(self.schedule, files.noise), {"report": self.reported_on(1).seed}
        cache, exact = (engine.root / "quantized").absolute(), Denoiser(files, "cpu", asked)
        full = 4 * sum(p.numel() for p in exact.network.module.parameters())
        rows, temporal = list[Row](), list[Row]()
        for name, config in self.configs.items():
            folder, errors = None, list[TemporalError]()
            if config is not None:
                folder = _calibrated(name, files, Recipe(config, schedule, asked), cache, engine)
                errors = _temporal(files, exact, schedule, folder)
                # The multiply-adds are the same in full precision; a quantised network knows them.
                counted = find_quantized(folder).description["coverage"]
                rows[0]["bit_operations"] = FULL_PRECISION**2 * sum(layer["multiply_adds"] for layer in counted)
            runtime: Literal["reference", "integer"] = "integer" if name.endswith(INTEGER) else "reference"
            subject = Subject(self.model, conditions=asked, quantized=str(folder or ""), runtime=runtime)
            report = self.reported_on(self.images)
            pairs = Rung("distance", "distance", self.paired_images, report.seed)
            (judged,), (paired,) = (engine.records(subject, [(schedule, name)], r, schedule) for r in (report, pairs))
            rows.append(_row(name, judged, paired, schedule, folder, full, errors))
            temporal += [{"method": name, **asdict(error)} for error in errors]
        yield Sheet(engine.name, rows, seeds)
        yield Sheet(f"{engine.name}_temporal", temporal, seeds)
        yield Picture(f"{engine.name}_temporal", lambda path: draw_temporal(temporal, path))


def _calibrated(name: str, files: ModelFiles, recipe: Recipe, cache: Path, engine: Engine) -> Path:
    try:
        folder, calls = cached(files, recipe, cache, engine.execution.device)
    except EvaluationError as error:
        raise EvaluationError(f"{name} cannot be calibrated: {error}") from error
    if calls:
        engine.tell(f"calibrated {name}")
    return folder


def _temporal(files: ModelFiles, exact: Denoiser, schedule: SolverSchedule, folder: Path) -> list[TemporalError]:
    """Errors at the schedule's own timesteps, over every label."""
    tables = compile_schedule(schedule, files.noise, files.prediction_type)
    times = [time for time, called in zip(tables.times, tables.called, strict=True) if called]
    labels = exact.network.condition(exact.conditions, range(max(1, files.classes or 1)))
    count = 1 if labels is None else len(labels)
    example = {"x": torch.zeros(count, *files.shape), "time": torch.full((count,), times[0], dtype=torch.float32)}
    if labels is not None:
        example["condition" if files.text else "labels"] = labels
    return temporal_errors(exact.network.module, from_pretrained(folder), times, example)


def _row(
    name: str,
    judged: EvaluationRecord,
    paired: EvaluationRecord,
    schedule: SolverSchedule,
    folder: Path | None,
    full: int,
    errors: Sequence[TemporalError],
) -> Row:
    """One method. Paired errors are distances to the full-precision samples of the same noise."""
    size, operations, cost = full, 0, {"denoiser_calls": 0, "seconds": 0.0}
    if folder is not None:
        stored = find_quantized(folder)
        size, operations, cost = stored.bytes, stored.description["bit_operations"], stored.description["cost"]
    count = max(1, len(errors))
    head = {"model": judged.model, "method": name, "nfe": judged.nfe}
    distance = measured(paired, name)
    return (
        head
        | measured(judged, name)
        | {
            "images": judged.images,
            "paired_feature": distance["value"],
            "paired_feature_low": distance["low"],
            "paired_feature_high": distance["high"],
            "paired_pixel": paired.metrics["pixel_distance"],
            "temporal_error": sum(e.relative_error for e in errors) / count,
            "temporal_cosine": sum(e.cosine for e in errors) / count if errors else 1.0,
            "bytes": size,
            "size_ratio": size / full,
            "bit_operations": operations,
            "calibration_calls": int(cost["denoiser_calls"]),
            "calibration_seconds": cost["seconds"],
            "schedule": schedule.name or schedule.hash,
        }
    )


def draw_temporal(rows: Sequence[Row], path: Path) -> Path:
    """Relative error of the temporal features by timestep: a panel for each pair of bits, a line a method.

    Methods of a panel whose lines are the same, as those are that differ elsewhere alone, share one; it is named once,
    at its right end.
    """
    from matplotlib.figure import Figure

    frame = pd.DataFrame(rows)
    # No error at all is still a place on a logarithmic scale.
    smallest = frame["relative_error"][frame["relative_error"] > 0].min() / 2
    frame["relative_error"] = frame["relative_error"].clip(lower=smallest)
    frame["bits"] = [str(method).partition("-")[0] for method in frame["method"]]
    panels = list(frame.groupby("bits", sort=False))
    figure = Figure(figsize=(10, 3.2 * -(-len(panels) // PANELS)), layout="constrained")
    axes = figure.subplots(-(-len(panels) // PANELS), min(PANELS, len(panels)), sharey=True, squeeze=False).flatten()
    for axis, (bits, own) in zip(axes, panels, strict=False):
        lines = _distinct_lines(own)
        for k, (names, line) in enumerate(lines):
            ours = any("tfmq" in name for name in names)
            style = {"color": ACCENT if ours else MUTED[k % len(MUTED)], "marker": "o" if ours else "s"}
            axis.plot(line.index, line, markersize=3, **style)
        axis.set(xlabel="timestep", ylabel="relative error", yscale="log", title=f"Temporal features, {bits}")
        _name_lines(axis, lines)
    for axis in axes[len(panels) :]:
        axis.remove()
    return save_figure(figure, path)


def _distinct_lines(own: pd.DataFrame) -> list[tuple[list[str], pd.Series]]:
    """Names and error by time of a panel's lines, from the lowest at the right end to the highest."""
    lines: list[tuple[list[str], pd.Series]] = []
    for name, group in own.groupby("method", sort=False):
        line = group.set_index("time")["relative_error"].sort_index()
        short = str(name).partition("-")[2]
        for names, known in lines:
            if len(known) == len(line) and bool(((known - line).abs() <= SAME * line.abs()).all()):
                names.append(short)
                break
        else:
            lines.append(([short], line))
    return sorted(lines, key=lambda found: float(found[1].iloc[-1]))


def _name_lines(axis: Any, lines: Sequence[tuple[list[str], pd.Series]]) -> None:
    """Write names to the right of the panel, each as near to its line's end as the name below it lets it."""
    low, high = np.log(axis.get_ylim())
    wanted = [(np.log(float(line.iloc[-1])) - low) / (high - low) for _, line in lines]
    places = [float(wanted[0])]
    for place in wanted[1:]:
        places.append(max(float(place), places[-1] + NAME_HEIGHT))
    down = max(0.0, places[-1] - 1)
    for k, (names, line) in enumerate(lines):
        shown = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        end, place = (line.index[-1], float(line.iloc[-1])), (1.08, places[k] - down)
        pointer = {"arrowstyle": "-", "color": MUTED[-1], "linewidth": 0.5, "relpos": (0, 0.5)}
        axis.annotate(
            *(shown, end, place),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            arrowprops=pointer,
            annotation_clip=False,
        )


FASHION = Quantization()
