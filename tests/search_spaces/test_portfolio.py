"""Schedules that were found on other models are placed on one as they were, or stretched over its noise."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fewstep.errors import DataError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.genome import to_genome
from fewstep.search_spaces.schedule.portfolio import SHORTEST, Entry, Portfolio, load_portfolio, spaced
from fewstep.search_spaces.schedule.presets import preset
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import ratio_grid

MODELS = ("digits-ddpm", "digits-edm", "fashion-lfm")
NFES = (2, 4, 8)


def _entries() -> list[Entry]:
    """Presets as if they had been found on each model; one goes a little beyond its range."""
    found = []
    for model, nfe in product(MODELS, NFES):
        files = find_model(model)
        start, end = files.noise.lambda_start, files.noise.lambda_end
        for name in ("unipc-3-bh2/karras", "dpmpp-2m/uniform-lambda-zero"):
            schedule = ratio_preset(name, files, nfe)
            found.append(_entry(f"{model}-{nfe}{name[0]}", files, schedule))
        beyond = schedule.model_copy(update={"lambdas": (start, *np.linspace(start + 1, end + 0.5, nfe))})
        found.append(_entry(f"{model}-{nfe}beyond", files, beyond))
    return found


def ratio_preset(name: str, files: ModelFiles, nfe: int) -> SolverSchedule:
    solver, _, grid = name.partition("/")
    return preset(solver, ratio_grid(grid, files.noise, nfe))


def _entry(name: str, files: ModelFiles, schedule: SolverSchedule) -> Entry:
    noise = files.noise
    return Entry(
        name=name,
        model=files.name,
        model_hash=files.hash,
        noise_range=(noise.lambda_start, noise.lambda_end),
        schedule=schedule,
    )


ENTRIES = _entries()
PORTFOLIO = Portfolio(entries=tuple(ENTRIES))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_on_the_noise_that_it_was_found_on_an_entry_is_what_it_was(entry: Entry) -> None:
    (placed,) = entry.placed(*entry.noise_range).values()
    assert placed.lambdas == pytest.approx(entry.schedule.lambdas)
    assert placed.steps == entry.schedule.steps
    assert placed.first_call == entry.schedule.first_call


@given(st.sampled_from(ENTRIES), st.floats(-9, -2), st.floats(3, 9))
def test_on_other_noise_calls_and_steps_stay_and_times_rise_from_its_start(
    entry: Entry, start: float, end: float
) -> None:
    placed = entry.placed(start, end)
    assert placed
    for schedule in placed.values():
        assert schedule.nfe == entry.schedule.nfe
        assert schedule.steps == entry.schedule.steps
        assert schedule.corrections is None
        assert schedule.lambdas[0] == pytest.approx(start)
        steps = [b - a for a, b in zip(schedule.lambdas, schedule.lambdas[1:], strict=False)]
        assert min(steps) >= 0.99 * SHORTEST
    inner = [v for v in entry.schedule.lambdas[1:] if math.isfinite(v)]
    if all(start + 1 < v < end for v in inner):
        assert placed["kept"].lambdas[1:] == entry.schedule.lambdas[1:]


@pytest.mark.parametrize("name", MODELS)
def test_they_run_on_every_family_of_noise_as_members_of_the_space(name: str) -> None:
    files = find_model(name)
    noise: NoiseSchedule = files.noise
    assert noise.lambda_start < noise.lambda_end
    for nfe in NFES:
        placed = PORTFOLIO.for_model("another", nfe, noise.lambda_start, noise.lambda_end)
        assert len(placed) >= len(MODELS)
        for schedule in placed.values():
            compile_schedule(schedule, noise, files.prediction_type)
            assert to_genome(schedule).nfe == nfe


def test_a_model_is_given_nothing_that_was_found_on_it() -> None:
    for name in MODELS:
        files = find_model(name)
        noise = files.noise
        given = PORTFOLIO.for_model(files.hash, 4, noise.lambda_start, noise.lambda_end)
        assert given
        assert not any(schedule_name.startswith(f"{name}-") for schedule_name in given)


def test_times_that_meet_are_parted_a_little_or_not_at_all() -> None:
    assert spaced([0.0, 1.0, math.inf]) == (0.0, 1.0, math.inf)
    assert spaced([0.0, -0.2, 1.0]) == (0.0, SHORTEST, 1.0)
    assert spaced([0.0, -2.0, 1.0]) is None


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="entries share the name 'digits-edm-4u'"):
        Portfolio(entries=tuple(e.model_copy(update={"name": "digits-edm-4u"}) for e in ENTRIES[:2]))


@pytest.mark.parametrize("text", ["", "{}", '{"entries": []}', '{"entries": [{"name": "a"}]}'])
def test_a_file_that_is_no_portfolio_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "portfolio.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"portfolio\.json is no portfolio.*fewstep schedule collect"):
        load_portfolio(path)
    with pytest.raises(DataError, match=r"cannot read portfolio .*missing\.json"):
        load_portfolio(tmp_path / "missing.json")
