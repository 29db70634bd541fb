"""The end of a search of quantised networks: the front and what it is compared with, on noise it never saw.

Compared with it are the named configs that the search judged, and the front's schedules in full precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.files import write_text
from fewstep.pipeline.climb import Trial, Work
from fewstep.pipeline.evaluator import Candidate
from fewstep.pipeline.executors.base import Executor
from fewstep.pipeline.proposers.evolution import NAMED
from fewstep.pipeline.quantization_state import QuantizationState
from fewstep.pipeline.reports.pictures import COLUMNS, write_grid
from fewstep.pipeline.reports.rows import FOUND, Row, row_of
from fewstep.search_spaces.quantization import FULL_PRECISION, QuantizationConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.worker import Task

EXACT = "full precision"
PICTURES = 8
# What the columns of the table mean that a schedule's table does not have.
NOTES = {
    "size_bytes": "packed weights with their grids; of full precision 4 bytes a parameter",
    "bit_operations": "multiply-adds x weight bits x activation bits x NFE for one image: a stand-in for time",
}


@dataclass(frozen=True)
class QuantizedRow(Row):
    """A row with the other two objectives, see NOTES."""

    size_bytes: int
    bit_operations: int
    quantization: str


@dataclass(frozen=True)
class Member:
    """A member of the front. `stem` names its files; the first of an NFE has the best quality."""

    method: str
    stem: str
    trial: Trial


def members(state: QuantizationState) -> list[Member]:
    """The front by NFE, best quality first, as the search itself judged it."""
    found = []
    for nfe in sorted(state.settings.nfes):
        own = [t for t in state.front() if t.candidate.schedule.nfe == nfe]
        own.sort(key=lambda t: _quality(state, t))
        for i, trial in enumerate(own):
            end = f"-{i + 1}" if i else ""
            found.append(Member(f"{FOUND}{end}", f"nfe{nfe}{end}", trial))
    return found


def _quality(state: QuantizationState, trial: Trial) -> tuple[float, int]:
    values = (trial.value(rung) for rung in (state.finals, state.judge, state.screen))
    return next(value for value in values if value is not None), trial.candidate.trial


def contenders(state: QuantizationState) -> list[tuple[str, Candidate]]:
    """(method, candidate) of every row: the front, full precision, and each named config where it was judged best."""
    front = members(state)
    rows = [(m.method, _with_origin(m.trial.candidate, f"found:{m.trial.candidate.origin}")) for m in front]
    on_front = {m.trial.candidate.hash for m in front}
    for nfe in sorted(state.settings.nfes):
        best = next((m.trial.candidate for m in front if m.trial.candidate.schedule.nfe == nfe), None)
        if best is not None:
            rows.append((EXACT, Candidate(best.trial, best.schedule, EXACT)))
        named: dict[str, Candidate] = {}
        for trial in state.best(nfe, state.judge):
            if trial.candidate.origin.startswith(NAMED):
                named.setdefault(trial.candidate.origin.removeprefix(NAMED), trial.candidate)
        rows += [(name, candidate) for name, candidate in named.items() if candidate.hash not in on_front]
    return rows


def _with_origin(c: Candidate, origin: str) -> Candidate:
    return Candidate(c.trial, c.schedule, origin, c.parameters, c.quantization)


def quantization_work(state: QuantizationState) -> list[Work]:
    """What the report has to evaluate, each candidate once."""
    distinct: dict[str, Candidate] = {}
    for _, candidate in contenders(state):
        distinct.setdefault(candidate.hash, candidate)
    return [(candidate, state.report) for candidate in distinct.values()]


def quantization_rows(state: QuantizationState, records: Sequence[EvaluationRecord]) -> list[Row]:
    """The final table from the report's records."""
    by_hash = {r.candidate: r for r in records if r.rung == state.report.name and r.value is not None}
    sizes = next((r.metrics for t in state.trials.values() for r in t.records.values() if r.metrics), {})
    rows: list[Row] = []
    for method, candidate in contenders(state):
        record = by_hash.get(candidate.hash)
        if record is None:
            continue
        config = candidate.quantization
        if config is None:
            size = sizes["parameters"] * FULL_PRECISION / 8
            operations = sizes["multiply_adds_a_call"] * FULL_PRECISION**2
        else:
            size, operations = record.metrics["size_bytes"], record.metrics["bit_operations_a_call"]
        base = row_of(record, method, candidate.schedule.name or candidate.schedule.hash)
        name = config.name if config else ""
        rows.append(
            QuantizedRow(
                **asdict(base), size_bytes=int(size), bit_operations=int(operations) * record.nfe, quantization=name
            )
        )
    return rows


def publish_front(
    state: QuantizationState,
    executor: Executor,
    root: Path,
    model: dict[str, object],
    teacher: SolverSchedule,
    network: Callable[[QuantizationConfig], Path],
) -> dict[str, Path]:
    """Write config and, where it was searched, schedule of every member, what they have in common, and pictures.

    `model` goes into the schedules' provenance; `network` says where a config's calibrated network lies, if it does.
    All of it can be made again from the records.
    """
    joint = state.settings.space == "joint"
    calibration = write_text(root / "calibration.json", state.calibration.to_json(indent=2) + "\n")
    listed = []
    for member in members(state):
        candidate = member.trial.candidate
        config = candidate.quantization
        assert config is not None
        schedule = candidate.schedule
        if joint:
            schedule = schedule.model_copy(update={"name": f"fewstep-{member.stem}", "provenance": model})
            write_text(root / "schedules" / f"{member.stem}.json", schedule.to_json(indent=2) + "\n")
        write_text(root / "configs" / f"{member.stem}.json", config.model_dump_json(indent=2) + "\n")
        folder = network(config)
        listed.append(_listed(state, member) | ({"network": str(folder.relative_to(root))} if folder.is_dir() else {}))
    text = json.dumps({"notes": NOTES, "calibrated_with": calibration.name, "members": listed}, indent=2)
    files = {"front.json": write_text(root / "front.json", text + "\n"), "calibration.json": calibration}
    return files | {"images.png": _pictures(state, executor, root / "images.png", teacher)}


def _listed(state: QuantizationState, member: Member) -> dict[str, Any]:
    candidate = member.trial.candidate
    record = next(
        member.trial.records[r.name]
        for r in (state.finals, state.judge, state.screen)
        if r.name in member.trial.records
    )
    return {
        "method": member.method,
        "config": f"configs/{member.stem}.json",
        "schedule": f"schedules/{member.stem}.json" if state.settings.space == "joint" else "calibration.json",
        "origin": candidate.origin,
        "nfe": candidate.schedule.nfe,
        "rung": record.rung,
        "value": record.value,
        "size_bytes": int(record.metrics["size_bytes"]),
        "bit_operations": int(record.metrics["bit_operations_a_call"]) * record.nfe,
        "quantization": candidate.quantization.name if candidate.quantization else "",
    }


def _pictures(state: QuantizationState, executor: Executor, path: Path, teacher: SolverSchedule) -> Path:
    """The same noise under the first members, in full precision, and under the teacher."""
    exact = [(f"exact, {c.schedule.nfe} calls", c) for method, c in contenders(state) if method == EXACT]
    shown = [(f"{m.method}, {m.trial.candidate.schedule.nfe} calls", m.trial.candidate) for m in members(state)]
    rows = [*shown[:PICTURES], *exact, (f"teacher, {teacher.nfe}", Candidate(0, teacher, "teacher"))]
    seed = state.settings.report_seed
    return write_grid([(label, _images(executor, candidate, seed)) for label, candidate in rows], path)


def _images(executor: Executor, candidate: Candidate, seed: int) -> npt.NDArray[np.float32]:
    config = candidate.quantization.model_dump_json() if candidate.quantization else ""
    schedule = candidate.schedule.to_json()
    executor.submit(Task(f"images-{candidate.hash}", "images", schedule, seed, 0, COLUMNS, quantization=config))
    result = executor.next()
    if result.images is None:
        raise RuntimeError(result.error)
    return result.images
