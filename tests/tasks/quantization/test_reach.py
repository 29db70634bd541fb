"""A quantised network says so, once, where a schedule asks for times far from those it was calibrated on."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from fewstep.search_spaces.quantization import named
from fewstep.tasks.models.files import find_model
from fewstep.tasks.quantization.reach import called_lambdas, far_from, tell_if_far
from fewstep.tasks.quantization.storage import DESCRIPTION, SAID, WEIGHTS
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import parse_schedule

FILES = find_model("digits-ddpm")
SCHEDULES = ("ddim/uniform-lambda@4", "unipc-2-bh2/karras-zero@5", "dpmpp-3m/quadratic@3", "heun/uniform-t-zero@5")


def stored(folder: Path, schedule: str, config: str = "w4a8-tfmq-full") -> Path:
    """The description of a network that was calibrated on a schedule, and nothing more of it."""
    folder.mkdir()
    description = {
        **{key: {} for key in SAID},
        "schema_version": 1,
        "config": named(config).model_dump(),
        "schedule": parse_schedule(schedule, FILES.noise).model_dump(mode="json"),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description))
    (folder / WEIGHTS).write_bytes(b"")
    return folder


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_lambdas_of_the_calls_are_those_of_the_times_that_are_told(name: str) -> None:
    schedule = parse_schedule(name, FILES.noise)
    tables = compile_schedule(schedule, FILES.noise, FILES.prediction_type)
    told = {round(t, 3) for t, called in zip(tables.times, tables.called, strict=True) if called}
    assert {round(FILES.noise.time(lambda_), 3) for lambda_ in called_lambdas(schedule)} == told


def test_what_lies_between_calibrated_times_is_near_and_what_lies_beyond_them_far() -> None:
    noise = FILES.noise
    assert not far_from([-2.0, 0.0, 2.0], [-2.5, -1.0, 0.5, 1.0, 2.9], noise)
    assert far_from([-2.0, 0.0, 2.0], [-2.5, -4.0, 1.0], noise) == [-4.0]
    # Beyond the model's own range nothing is asked.
    assert not far_from([0.0, noise.lambda_end], [noise.lambda_end + 50], noise)


def test_a_far_schedule_is_told_of_once_for_each_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = FILES.noise
    near, far = (parse_schedule(name, noise) for name in ("ddim/uniform-lambda@6", "ddim/uniform-t@200"))
    folder, other = stored(tmp_path / "a", "ddim/uniform-lambda@6"), stored(tmp_path / "b", "ddim/uniform-t@200")
    with caplog.at_level(logging.WARNING):
        assert not tell_if_far(folder, near, noise)
        assert not caplog.records
        # Even in time, two hundred calls leave the last stretch of lambda alone.
        assert tell_if_far(other, near, noise)
        assert tell_if_far(other, near, noise)
        assert len(caplog.records) == 1
        assert str(other) in caplog.text
        assert not tell_if_far(folder, far, noise)
    exact = stored(tmp_path / "c", "ddim/uniform-t@200", "w4a32-tfmq-full")
    assert not tell_if_far(exact, near, noise)
