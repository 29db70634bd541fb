"""A made-up study: presets and found schedules at NFE 3 to 5, with a lost actor and a failure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import pseudo_corrector, taylor
from fewstep.search_spaces.schedule.presets import preset
from fewstep.storage.records import EvaluationRecord, EventRecord, StudyRecord
from fewstep.storage.store import Store

STUDY = "digits"
START = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
NFES = (3, 4, 5)


def found_schedule(nfe: int) -> SolverSchedule:
    """A schedule with a bit of everything, ending at sigma = 0."""
    lambdas = (*np.linspace(-5.0, 2.0, nfe) + 0.3 * np.sin(np.arange(nfe)), math.inf)
    steps = [Step(prediction="noise", corrector=pseudo_corrector(1, 1, "bh1"))]
    for i in range(1, nfe - 1):
        linear = taylor(2, relaxation="linear", c=-0.12 * i)
        steps.append(Step(prediction="data" if i % 2 else "noise", predictor=linear))
    return SolverSchedule.build(lambdas=lambdas, steps=(*steps, Step()), name=f"found-{nfe}")


def record(order: int, schedule: SolverSchedule, **changes: Any) -> EvaluationRecord:
    """One evaluation on 1,000 images."""
    fields: dict[str, Any] = {
        "study": STUDY,
        "order": order,
        "trial": order,
        "key": f"key-{order}",
        "candidate": schedule.hash,
        "candidate_json": as_point(schedule).to_json(),
        "nfe": schedule.nfe,
        "rung": "frechet",
        "origin": "random",
        "model": "digits-ddpm",
        "model_hash": "0123456789abcdef",
        "features": "fid-digits",
        "reference": "digits-train",
        "seed": 0,
        "images": 1000,
        "metric": "frechet",
        "value": 10.0,
        "low": None,
        "high": None,
        "denoiser_calls": 1000 * schedule.nfe,
        "seconds": 1.5,
        "device": "cpu",
        "finished_at": START + timedelta(seconds=order),
        "parameters": {"nfe": schedule.nfe},
        "versions": {"torch": "2.9.0", "fewstep": "0.1.0"},
    }
    return EvaluationRecord(**{**fields, **changes})


def search_records() -> list[EvaluationRecord]:
    """What a search leaves before its report."""
    rows = []
    for k in range(60):
        nfe = NFES[k % 3]
        lambdas = (*np.linspace(-5, 1 + 0.02 * k, nfe), math.inf)
        schedule = preset("ddim", lambdas)
        rows.append(record(2 * k, schedule, rung="distance", metric="teacher-distance", value=0.1, images=128))
        value = 400.0 / nfe**2 * (0.4 + 1 / (1 + k // 6)) + (k * 37 % 11)
        rows.append(record(2 * k + 1, schedule, value=value, origin="evolution"))
    broken = preset("ddim", np.linspace(-5, 2, 4))
    rows.append(record(120, broken, status="failed", value=None, error="out of <memory>\nat line 3"))
    return rows


def report_records() -> list[EvaluationRecord]:
    """Two found schedules short of one preset each, ten thousand images apiece."""
    rows = []
    for nfe in NFES:
        lambdas = (*np.linspace(-5, 2, nfe), math.inf)
        entries = [("found:evolution", found_schedule(nfe), 21.37 / (nfe - 1))]
        for k, name in enumerate(("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2-bh1", "unipc-3-bh2")):
            entries.append((f"preset:{name}/karras", preset(name, lambdas), (30.5 + 5 * k) / (nfe - 1)))
        for origin, schedule, value in entries:
            rows.append(
                record(
                    200 + len(rows),
                    schedule,
                    rung="report",
                    origin=origin,
                    value=value,
                    low=0.95 * value,
                    high=1.06 * value,
                    images=10_000,
                    seed=1_000_003,
                    denoiser_calls=10_000 * nfe,
                )
            )
    return rows


def study_record(name: str = STUDY) -> StudyRecord:
    """The study's settings."""
    settings = {"study": name, "nfes": list(NFES), "sampler": "s3", "budget": 500_000, "noise": {"seed": 0}}
    return StudyRecord(name, START, json.dumps(settings), "digits-ddpm", "0123456789abcdef", {"ray": "2.50"})


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    """Fills a store under `tmp_path` with a study and some records."""

    def make(rows: list[EvaluationRecord], events: list[EventRecord] | None = None) -> Store:
        store = Store(tmp_path / "store")
        store.studies.append([study_record()])
        store.evaluations.append(rows)
        store.events.append(events or [])
        return store

    return make


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    """A finished study."""
    events = [
        EventRecord(STUDY, 0, "refit", "surrogate fitted", START, '{"tau": 0.5}'),
        EventRecord(STUDY, 1, "actor_died", "actor 1 ended: its work is redone", START + timedelta(minutes=2)),
    ]
    return make_store([*search_records(), *report_records()], events)
