"""What a search may be asked to do, and what is refused before it starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.recipes import RECIPES, search_recipe
from fewstep.pipeline.settings import STORED, SearchSettings, parse_nfes
from fewstep.pipeline.sizes import plan, sized


@pytest.mark.parametrize(
    ("text", "nfes"),
    [
        ("3", (3,)),
        ("3-6", (3, 4, 5, 6)),
        ("8,3,5", (3, 5, 8)),
        ("5,3-4, 4-6", (3, 4, 5, 6)),
        ("1-1", (1,)),
        ("100", (100,)),
    ],
)
def test_nfe_ranges(text: str, nfes: tuple[int, ...]) -> None:
    assert parse_nfes(text) == nfes


@pytest.mark.parametrize(
    "text", ["", "0-3", "0", "5-3", "abc", "3-", "-3", "3..5", "101", "99-101", "3,,4", "2.5", "²"]
)
def test_impossible_nfe_ranges_are_refused_by_value(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_nfes(text)
    assert repr(text) in str(caught.value)


@given(st.sets(st.integers(1, 100), min_size=1))
def test_what_was_written_is_read(numbers: set[int]) -> None:
    assert parse_nfes(",".join(map(str, numbers))) == tuple(sorted(numbers))


@given(st.integers(0, 2**40), st.integers(0, 1_000_000))
def test_the_report_never_sees_the_noise_of_a_search(seed: int, other: int) -> None:
    settings = SearchSettings(model="m", seed=seed)
    assert len({settings.noise_seed, settings.finals_seed, settings.report_seed}) == 3
    # Nor that of any search with a seed that a person would write.
    assert SearchSettings(model="m", seed=other).report_seed > 1_000_000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"screen": "frechet", "look_images": 500, "frechet_images": 500}, "must be below frechet_images 500"),
        ({"presets": 0.3, "refine": 0.5, "finals": 0.2}, "leave 0.00 of the budget.*at most 0.9"),
        ({"finals": 0.0}, "finals"),
        ({"grids": ()}, "grids"),
        ({"grids": ("diagonal",)}, "grids diagonal: choose from"),
        ({"preset_grids": 1}, "preset_grids"),
        ({"nfes": (0, 3)}, "NFE 0 is not possible"),
        ({"nfes": ()}, "not possible"),
        ({"nfes": (3, 3)}, "duplicates"),
        ({"sampler": "magic"}, "sampler"),
        ({"budget": 0}, "budget"),
        ({"seed": -1}, "seed"),
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"colour": "red"}, "colour"),
        ({"report_images": -5}, "report_images"),
        ({"study": ""}, "study"),
    ],
)
def test_impossible_settings_are_refused_by_name(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        SearchSettings.build(**({"model": "m"} | fields))
    assert "\n" not in str(caught.value)


def test_settings_are_frozen_and_survive_storage() -> None:
    settings = SearchSettings.build(model="m", nfes=(3, 5), keep=0.1)
    assert SearchSettings.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValidationError):
        settings.budget = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        ExecutionSettings().workers = 3  # type: ignore[misc]


def test_every_recipe_builds_and_an_unknown_one_is_answered_with_their_names() -> None:
    for name in RECIPES:
        assert search_recipe(name).nfes
    with pytest.raises(ConfigurationError, match="digits-demo"):
        search_recipe("digits-demoo")


def test_a_population_is_of_samplers_that_have_one_and_leaves_its_first_generation() -> None:
    with pytest.raises(ConfigurationError, match="population is that of sampler nsgaii or nsgaiii, not of tpe"):
        SearchSettings.build(model="digits-ddpm", sampler="tpe", population=8)
    asked = {"model": "digits-ddpm", "sampler": "nsgaii", "nfes": (4,)}
    small, large = (sized(SearchSettings.build(**asked, budget=budget)) for budget in (60_000, 2_000_000))
    assert small.population is not None
    assert small.population * 2 <= plan(small, 4).proposals
    assert small.population < (large.population or 0) <= 50
    assert sized(SearchSettings.build(**asked, population=9)).population == 9
    stored = SearchSettings.model_validate(asked, context={STORED: True})
    assert stored.population == 50, "as Optuna has it, and studies that were begun before did"
