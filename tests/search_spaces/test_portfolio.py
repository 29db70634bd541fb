"""Schedules that were found on other models are placed on one as they were, or stretched over its noise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import DataError
from fewstep.search_spaces.schedule.genome import to_genome
from fewstep.search_spaces.schedule.portfolio import SHORTEST, Entry, load_portfolio, spaced
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.sampling.compile import compile_schedule

ENTRIES = load_portfolio().entries


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
    assert "stretched" in placed
    for schedule in placed.values():
        assert schedule.nfe == entry.schedule.nfe
        assert schedule.steps == entry.schedule.steps
        assert schedule.corrections is None
        assert schedule.lambdas[0] == pytest.approx(start)
        steps = [b - a for a, b in zip(schedule.lambdas, schedule.lambdas[1:], strict=False)]
        assert min(steps) >= 0.99 * SHORTEST
    if "kept" in placed:
        same = [b for a, b in zip(entry.schedule.lambdas[1:], placed["kept"].lambdas[1:], strict=True) if a == b]
        assert len(same) >= len(entry.schedule.steps) - 2 or start > -3.5 or end < 5


@pytest.mark.parametrize("name", ["digits-ddpm", "digits-edm", "fashion-lfm"])
def test_the_bundled_ones_run_on_every_family_of_noise_as_members_of_the_space(name: str) -> None:
    files = find_model(name)
    noise: NoiseSchedule = files.noise
    assert noise.lambda_start < noise.lambda_end
    counts = {nfe: 0 for nfe in (3, 4, 5, 6, 8, 10)}
    for nfe in counts:
        for schedule in load_portfolio().for_model("another", nfe, noise.lambda_start, noise.lambda_end).values():
            compile_schedule(schedule, noise, files.prediction_type)
            assert to_genome(schedule).nfe == nfe
            counts[nfe] += 1
    assert min(counts.values()) >= 7


def test_a_model_is_given_nothing_that_was_found_on_it() -> None:
    for name in {entry.model for entry in ENTRIES}:
        files = find_model(name)
        noise = files.noise
        given = load_portfolio().for_model(files.hash, 4, noise.lambda_start, noise.lambda_end)
        assert given
        assert not any(schedule_name.startswith(f"{name}-") for schedule_name in given)


def test_times_that_meet_are_parted_a_little_or_not_at_all() -> None:
    assert spaced([0.0, 1.0, math.inf]) == (0.0, 1.0, math.inf)
    assert spaced([0.0, -0.2, 1.0]) == (0.0, SHORTEST, 1.0)
    assert spaced([0.0, -2.0, 1.0]) is None


@pytest.mark.parametrize("text", ["", "{}", '{"entries": []}', '{"entries": [{"name": "a"}]}'])
def test_a_file_that_is_no_portfolio_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "portfolio.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"portfolio\.json is no portfolio.*fewstep schedule collect"):
        load_portfolio(path)
    with pytest.raises(DataError, match=r"cannot read portfolio .*missing\.json"):
        load_portfolio(tmp_path / "missing.json")
