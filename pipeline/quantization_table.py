"""Quantisations of one model side by side: Frechet distance, paired error, size, temporal features, cost.

Every method samples with the same schedule from the same noise; networks are calibrated once and kept by content,
evaluations too, so the same command goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.evaluator import Candidate, Evaluator
from fewstep.pipeline.executors.base import ExecutionSettings, Executor, make_executor
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import Driver, OnRecord, evaluate_all
from fewstep.pipeline.reports.csv import results_csv
from fewstep.pipeline.reports.provenance import footnote
from fewstep.pipeline.settings import REPORT_SEED_OFFSET
from fewstep.search_spaces.quantization import FULL_PRECISION, QuantizationConfig, parse_config
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.lease import Lease
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.quantization.build import Recipe
from fewstep.tasks.quantization.storage import DESCRIPTION, find_quantized, from_pretrained
from fewstep.tasks.quantization.temporal import TemporalError, temporal_errors
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.worker import Task, WorkerSettings

STUDY, FULL = "quantization", "fp32"
# A method's name with this behind it runs in integers.
INTEGER = "@int8"
Runtime = Literal["reference", "integer"]
Tell = Callable[[str], None]


class TableSettings(BaseModel):
    """Everything that decides what the table holds. Methods are config names, run in integers as NAME@int8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    schedule: SolverSchedule
    methods: tuple[str, ...]
    features: str = "auto"
    reference: str = "auto"
    conditions: Conditions = Field(default_factory=Conditions)
    images: PositiveInt = 5000
    paired_images: PositiveInt = 1000
    seed: NonNegativeInt = 0

    @property
    def configs(self) -> dict[str, QuantizationConfig | None]:
        """The config of every method; ConfigurationError for a name that is none."""
        names = dict.fromkeys((FULL, *self.methods))
        return {name: None if name == FULL else parse_config(name.removesuffix(INTEGER)) for name in names}

    @property
    def rungs(self) -> tuple[Rung, Rung]:
        """Frechet distance and paired error, on the report's noise."""
        seed = self.seed + REPORT_SEED_OFFSET
        return Rung("report", "moments", self.images, seed), Rung("distance", "distance", self.paired_images, seed)

    @property
    def seeds(self) -> dict[str, int]:
        """Seeds by name, for the header of a table."""
        return {"report": self.rungs[0].seed}

    def folder(self, cache: Path, files: ModelFiles, config: QuantizationConfig) -> Path:
        """Where the quantised network of a config is kept."""
        return cache / Recipe(config, self.schedule, self.conditions).key(files)


@dataclass(frozen=True)
class QuantizationRow:
    """One method. Paired errors are distances to the full-precision samples of the same noise."""

    model: str
    method: str
    nfe: int
    metric: str
    value: float
    low: float | None
    high: float | None
    images: int
    paired_feature: float
    paired_feature_low: float | None
    paired_feature_high: float | None
    paired_pixel: float
    temporal_error: float
    temporal_cosine: float
    bytes: int
    size_ratio: float
    bit_operations: int
    calibration_calls: int
    calibration_seconds: float
    schedule: str


@dataclass(frozen=True)
class TemporalRow:
    """Errors of one method's temporal features at one timestep."""

    method: str
    time: float
    cosine: float
    relative_error: float


@dataclass(frozen=True)
class Table:
    """The rows, and the temporal features' errors at every timestep by method."""

    rows: list[QuantizationRow]
    temporal: dict[str, list[TemporalError]]


def run(
    settings: TableSettings,
    root: Path,
    execution: ExecutionSettings,
    on_record: OnRecord | None = None,
    tell: Tell | None = None,
) -> Table:
    """Calibrate what is missing, evaluate what is missing, and put it together."""
    files, configs = find_model(settings.model), settings.configs
    if not any(configs.values()):
        raise ConfigurationError("there is nothing to compare: give at least one method besides fp32")
    settings.conditions.check(files.null_label, files.text)
    store = Store(root)
    cache, found = (root / "quantized").absolute(), dict[str, list[EvaluationRecord]]()
    runtimes: tuple[Runtime, ...] = ("reference", "integer")
    with Lease(root):
        for runtime in runtimes:
            asked = {name: c for name, c in configs.items() if name.endswith(INTEGER) == (runtime == "integer")}
            if asked:
                found |= _evaluate(settings, files, store, cache, execution, runtime, asked, on_record, tell)
    exact = Denoiser(files, "cpu", settings.conditions)
    full = 4 * sum(p.numel() for p in exact.network.module.parameters())
    rows, temporal = [], {}
    for name, config in configs.items():
        folder = None if config is None else settings.folder(cache, files, config)
        temporal[name] = [] if folder is None else _temporal(files, exact, settings.schedule, folder)
        rows.append(_row(name, settings, full, folder, found[name], temporal[name]))
        if folder is not None:
            counted = find_quantized(folder).description["coverage"]
            operations = FULL_PRECISION**2 * sum(layer["multiply_adds"] for layer in counted)
    # The same multiply-adds in full precision; there is at least one quantised network to know them from.
    rows = [replace(row, bit_operations=operations) if row.method == FULL else row for row in rows]
    return Table(rows, temporal)


def _evaluate(
    settings: TableSettings,
    files: ModelFiles,
    store: Store,
    cache: Path,
    execution: ExecutionSettings,
    runtime: Runtime,
    configs: dict[str, QuantizationConfig | None],
    on_record: OnRecord | None,
    tell: Tell | None,
) -> dict[str, list[EvaluationRecord]]:
    """The records of both rungs by method, from the tables or made now."""
    schedule, calibration = settings.schedule, settings.schedule.to_json()
    evaluator = Evaluator(
        STUDY,
        files,
        store,
        settings.features,
        settings.reference,
        schedule,
        settings.conditions,
        calibration=calibration,
        runtime=runtime,
    )
    past = store.evaluations.records(where={"study": STUDY})
    known = {r.key: r for r in past if r.status == "complete"}
    # By key: two names may be one config.
    work: dict[str, tuple[Candidate, Rung]] = {}
    for i, (name, config) in enumerate(configs.items()):
        candidate = Candidate(len(past) + i, schedule, name, quantization=config)
        for rung in settings.rungs:
            if (key := evaluator.key(schedule, rung, config)) not in known:
                work.setdefault(key, (candidate, rung))
    # A network that was deleted is made again, also where its evaluations are known.
    wanted = {candidate.quantization for candidate, _ in work.values()}
    missing: dict[str, QuantizationConfig] = {}
    for name, config in configs.items():
        if config is None or config in missing.values():
            continue
        if config in wanted or not (settings.folder(cache, files, config) / DESCRIPTION).is_file():
            missing[name] = config
    if work or missing:
        worker = WorkerSettings(
            settings.model,
            settings.features,
            execution.device,
            conditions=settings.conditions,
            calibration=calibration,
            cache=str(cache),
            runtime=runtime,
        )
        executor = make_executor(execution, worker)
        try:
            calibrate(executor, missing, tell)
            events = max((e.order for e in store.events.records({"study": STUDY})), default=-1) + 1
            driver = Driver(evaluator, executor, store, len(past), events, on_record)
            known |= {r.key: r for r in evaluate_all(work.values(), driver)}
        finally:
            executor.close()
    return {
        name: [known[evaluator.key(schedule, rung, config)] for rung in settings.rungs]
        for name, config in configs.items()
    }


def calibrate(executor: Executor, configs: dict[str, QuantizationConfig], tell: Tell | None = None) -> None:
    """Have the workers calibrate the configs, each one on one worker; EvaluationError where one cannot be."""
    waiting = list(configs.items())[::-1]
    names: dict[str, str] = {}
    while waiting or executor.in_flight:
        while waiting and executor.in_flight < executor.capacity:
            name, config = waiting.pop()
            names[config.hash] = name
            executor.submit(Task(config.hash, "calibrate", "", 0, 0, 0, quantization=config.model_dump_json()))
        result = executor.next()
        name = names[result.task.key]
        if result.error:
            raise EvaluationError(f"{name} cannot be calibrated: {result.error}")
        if tell:
            tell(f"calibrated {name} in {result.seconds:.0f} s, {len(waiting)} waiting")


def _temporal(files: ModelFiles, exact: Denoiser, schedule: SolverSchedule, folder: Path) -> list[TemporalError]:
    """Errors at the schedule's own timesteps, over every label."""
    tables = compile_schedule(schedule, files.noise, files.prediction_type)
    times = [time for time, called in zip(tables.times, tables.called, strict=True) if called]
    labels = exact.network.condition(exact.conditions, range(max(1, files.null_label or 1)))
    count = 1 if labels is None else len(labels)
    example = {"x": torch.zeros(count, *files.shape), "time": torch.full((count,), times[0], dtype=torch.float32)}
    if labels is not None:
        example["condition" if files.text else "labels"] = labels
    return temporal_errors(exact.network.module, from_pretrained(folder), times, example)


def _row(
    name: str,
    settings: TableSettings,
    full: int,
    folder: Path | None,
    records: Sequence[EvaluationRecord],
    temporal: Sequence[TemporalError],
) -> QuantizationRow:
    report, paired = records
    for record in records:
        if record.value is None:
            raise EvaluationError(f"{name} has no value at rung {record.rung}: {record.error}")
    assert report.value is not None
    assert paired.value is not None
    size, operations, cost = full, 0, {"denoiser_calls": 0, "seconds": 0.0}
    if folder is not None:
        stored = find_quantized(folder)
        size, operations, cost = stored.bytes, stored.description["bit_operations"], stored.description["cost"]
    return QuantizationRow(
        model=report.model,
        method=name,
        nfe=report.nfe,
        metric=report.features,
        value=report.value,
        low=report.low,
        high=report.high,
        images=report.images,
        paired_feature=paired.value,
        paired_feature_low=paired.low,
        paired_feature_high=paired.high,
        paired_pixel=paired.metrics["pixel_distance"],
        temporal_error=_mean([t.relative_error for t in temporal]),
        temporal_cosine=_mean([t.cosine for t in temporal], 1.0),
        bytes=size,
        size_ratio=size / full,
        bit_operations=operations,
        calibration_calls=int(cost["denoiser_calls"]),
        calibration_seconds=cost["seconds"],
        schedule=settings.schedule.name or settings.schedule.hash,
    )


def _mean(values: Sequence[float], empty: float = 0.0) -> float:
    return sum(values) / len(values) if values else empty


def table_csv(table: Table, command: str, settings: TableSettings) -> str:
    """The rows as CSV under `#` lines that say how they were made."""
    return results_csv(table.rows, command, settings.seeds)


def temporal_csv(table: Table, command: str, settings: TableSettings) -> str:
    """Temporal features' errors: a row a method and timestep."""
    rows = [TemporalRow(name, **asdict(error)) for name, errors in table.temporal.items() for error in errors]
    return results_csv(rows, command, settings.seeds)


def markdown(table: Table, command: str, settings: TableSettings) -> str:
    """The rows for a README, and under them how they were made."""
    lines = [
        f"| method | {table.rows[0].metric} | paired error (pixels) | temporal error | size |",
        "|---|---|---|---|---|",
    ]
    for row in table.rows:
        ends = "" if row.low is None else f" ({row.low:.2f} to {row.high:.2f})"
        lines.append(
            f"| {row.method} | {row.value:.2f}{ends} | {row.paired_pixel:.4f} | {row.temporal_error:.4f} "
            f"| {row.size_ratio:.3f} |"
        )
    made = footnote(command, settings.seeds)
    note = (
        f"{settings.images:,} images at {settings.schedule.nfe} calls, lower is better; paired error: root mean square "
        f"difference to the full-precision images of the same noise, {settings.paired_images:,} images; temporal "
        f"error: relative, mean over the timesteps; size: of the stored network, to FP32. {made}."
    )
    return "\n".join([*lines, "", note])
