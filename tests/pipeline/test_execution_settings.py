"""Where tasks run is decided in one place, and every option acts or is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors import base
from fewstep.pipeline.executors.base import AUTO, EXECUTORS, ExecutionSettings, make_executor
from fewstep.tasks.work import Subject, WorkerSettings


@pytest.mark.parametrize(
    ("executor", "workers", "address"),
    itertools.product((AUTO, "ray", "in-process"), (0, 1, 2, 7), (None, "auto", "10.0.0.1:6379")),
)
def test_every_option_acts_or_is_refused(executor: str, workers: int, address: str | None) -> None:
    fields: dict[str, Any] = {"executor": executor, "workers": workers, "address": address}
    if executor == "in-process" and (workers > 1 or address is not None):
        with pytest.raises(ConfigurationError, match=r"--executor ray, or no --(workers|address)"):
            ExecutionSettings.build(**fields)
        return
    asks_for_ray = bool(workers or address)
    expected = ("ray" if asks_for_ray else "in-process") if executor == AUTO else executor
    assert ExecutionSettings.build(**fields).resolved == expected


@pytest.mark.parametrize("fields", [{}, {"workers": 2}, {"address": "auto"}, {"executor": "ray"}])
def test_the_executor_made_is_the_resolved_one(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    asked = ExecutionSettings(**fields)
    monkeypatch.setattr(base.EXECUTORS, "load", lambda name: lambda worker, execution: (name, worker, execution))
    worker = WorkerSettings(Subject("m"))
    assert make_executor(asked, worker) == (asked.resolved, worker, asked)


def test_an_unknown_executor_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'spark': choose one of auto, ray, in-process, dask, slurm"):
        ExecutionSettings.build(executor="spark")
    assert all(ExecutionSettings(executor=name).resolved == name for name in EXECUTORS.names)


def test_a_time_limit_acts_or_is_refused() -> None:
    assert ExecutionSettings.build(executor="ray", timeout=90).timeout == 90
    assert ExecutionSettings.build(workers=2, timeout="2.5").timeout == 2.5
    for fields in ({"executor": "in-process"}, {}):
        with pytest.raises(ConfigurationError, match="--executor ray, or no --timeout"):
            ExecutionSettings.build(**fields, timeout=90)
    for wrong in (-1, float("nan"), float("inf"), "soon"):
        with pytest.raises(ConfigurationError, match="timeout"):
            ExecutionSettings.build(executor="ray", timeout=wrong)


def test_shares_of_a_machine_act_or_are_refused() -> None:
    assert ExecutionSettings.build(executor="ray", cpus="4").cpus == 4
    assert ExecutionSettings.build(workers=2, device="cuda", gpus="0.25").gpus == 0.25
    for fields, option in (
        ({"cpus": 2}, "cpus"),
        ({"cpus": 2, "executor": "in-process"}, "cpus"),
        ({"gpus": 0.5, "workers": 2}, "gpus"),
        ({"gpus": 0.5, "device": "cuda"}, "gpus"),
    ):
        with pytest.raises(ConfigurationError, match=f"--executor ray.*no --{option}"):
            ExecutionSettings.build(**fields)
    for option, wrong in itertools.product(("cpus", "gpus"), (0, -1, float("nan"), float("inf"), "many", 1.5)):
        with pytest.raises(ConfigurationError, match=option):
            ExecutionSettings.build(executor="ray", device="cuda", **{option: wrong})


def test_every_field_says_what_it_does() -> None:
    assert all(field.description for field in ExecutionSettings.model_fields.values())
