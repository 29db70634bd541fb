"""A study as a TOML file: what it says, what it points to, and what options change of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fewstep
from fewstep.errors import ConfigurationError
from fewstep.pipeline.recipes import RECIPES, recipe_fields, search_recipe
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import read_settings
from fewstep.pipeline.study_file import read_study_file, search_settings, study_toml
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid

Run = Callable[..., Any]


def _file(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def _settings(path: Path, **changes: Any) -> SearchSettings:
    return search_settings(read_study_file(path), changes)


def test_a_file_says_the_settings_and_is_named_after_itself(tmp_path: Path) -> None:
    path = _file(tmp_path, 'model = "digits-edm"\nnfes = "3-5"\nbudget = 90_000\n[conditions]\nlabels = "balanced"\n')
    assert _settings(path) == SearchSettings.build(
        model="digits-edm", study="mine", nfes=(3, 4, 5), budget=90_000, conditions={"labels": "balanced"}
    )


def test_what_a_file_points_to_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = preset_on_grid("ddim/uniform-t-zero", find_model("digits-ddpm").noise, 3)
    (tmp_path / "schedules").mkdir()
    (tmp_path / "schedules" / "nfe3.json").write_text(schedule.to_json())
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    (tmp_path / "known.safetensors").write_bytes(b"")
    (tmp_path / "mine.json").write_text("{}")
    text = (
        'model = "digits-ddpm"\nstatistics = "known.safetensors"\nportfolio = "mine.json"\n'
        'warm_start = {start}\n[conditions]\nprompts = "{p}"\n'
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for start in ('"schedules/nfe3.json"', '["schedules/nfe3.json"]', '"."'):
        made = _settings(_file(tmp_path, text.format(start=start, p="prompts.txt")))
        assert made.warm_start == (schedule.to_json(),)
        assert made.statistics == str(tmp_path / "known.safetensors")
        assert made.portfolio == str(tmp_path / "mine.json")
        assert made.conditions.prompt_list == ("a cat", "a dog")
    assert _settings(_file(tmp_path, text.format(start="[]", p="a red cat"))).conditions.prompts == "a red cat"
    kept = _file(tmp_path, 'model = "digits-ddpm"\nspace = "quantization"\nbase_schedule = "schedules/nfe3.json"\n')
    assert _settings(kept).base_schedule == schedule.to_json()
    assert _settings(kept).nfes == (3,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour = 1", "'colour'.*finals \\(0.1\\)"),
        ("[conditions]\nlabel = 1", "'conditions.label'.*labels"),
        ('conditions = "balanced"', "table"),
        ("nfes = ", "no TOML"),
        ('warm_start = "absent.json"', "absent.json"),
        ('[conditions]\nprompts = "absent.txt"', "absent.txt"),
        ('nfes = "5-3"', "5-3"),
        ("[conditions]\nguidance = 'much'", "much"),
    ],
)
def test_what_a_file_cannot_say_is_refused(text: str, words: str, tmp_path: Path) -> None:
    from fewstep.errors import FewstepError

    with pytest.raises(FewstepError, match=words):
        read_study_file(_file(tmp_path, text))
    with pytest.raises(ConfigurationError, match=r"absent\.toml"):
        read_study_file(tmp_path / "absent.toml")


def test_options_go_before_the_file(run: Run, tmp_path: Path) -> None:
    _file(tmp_path, 'model = "digits-ddpm"\nbudget = 5000\nkeep = 0.5\n[conditions]\nlabels = "none"\nguidance = 2.0\n')
    shown = run("search", "mine.toml", "--set", "budget=1e6", "--nfe", "4", "--labels", "3", "--print")
    assert shown.code == 0, shown.err
    made = _settings(_file(tmp_path, shown.out, "again.toml"))
    assert (made.study, made.budget, made.keep, made.nfes) == ("mine", 1_000_000, 0.5, (4,))
    assert (made.conditions.labels, made.conditions.guidance) == ("3", 2.0)
    assert not (tmp_path / "runs").exists()
    run("search", "mine.toml", "--recipe", "digits-demo").refused("mine.toml", "digits-demo")
    run("search", "mine.toml", "--resume").refused("--resume")
    run("search", "absent.toml").refused("absent.toml")


def test_a_scale_of_guidance_searches_none_and_a_range_its_own(run: Run, tmp_path: Path) -> None:
    for given, scale, ends in (("2", 2.0, None), ("1:8", 4.5, (1.0, 8.0))):
        shown = run("search", "--recipe", "fashion-flow-guided", "--guidance", given, "--print").out
        made = _settings(_file(tmp_path, shown))
        assert (made.conditions.guidance, made.guidance_range) == (scale, ends)
        assert made.conditions.labels == "balanced"


@pytest.mark.parametrize("name", RECIPES)
def test_a_printed_recipe_is_the_recipe(name: str, run: Run, tmp_path: Path) -> None:
    settings = search_recipe(name)
    path = _file(tmp_path, run("search", "--recipe", name, "--print").out)
    assert _settings(path) == settings
    assert study_toml(_settings(path)) == path.read_text()


def test_every_recipe_says_what_it_is_for_and_is_named_after_its_file() -> None:
    assert {"digits-demo", "fashion-front"} <= set(RECIPES)
    for name in RECIPES:
        assert recipe_fields(name)["study"] == name
        source = Path(__file__).parents[2] / "pipeline" / "recipes" / f"{name}.toml"
        assert source.read_text().startswith("# ")


def test_a_recipe_says_no_more_than_what_is_searched_and_for_how_much() -> None:
    assert search_recipe("digits-demo") == SearchSettings.build(
        study="digits-demo", model="digits-ddpm", nfes=(3, 4, 5), budget=420_000, report_images=4000
    )
    assert search_recipe("fashion-front") == SearchSettings.build(
        study="fashion-front",
        model="fashion-ddpm",
        nfes=(3, 4, 5, 6, 8, 10),
        conditions={"labels": "balanced"},
        budget=1_500_000,
    )


@pytest.mark.parametrize("name", ["../../escape", "/tmp/x", "a\\b", "", ".", "nul", "a\nb", "x" * 200])
def test_a_study_name_is_no_path(run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "runs").mkdir()
    run("search", "--model", "digits-ddpm", "--study", name).refused("study", "cannot be a study's name")
    run("search", "--model", "digits-ddpm", "--set", f"study={name}").refused("study", "cannot be a study's name")
    with pytest.raises(ConfigurationError, match="cannot be a study's name"):
        fewstep.search("digits-ddpm", study=name)
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_a_study_that_was_stored_under_a_name_of_before_is_read(toy: Path) -> None:
    settings = SearchSettings.build(model=str(toy))
    text = settings.model_dump_json().replace('"study":"search"', '"study":"edit-Boot/Sneaker"')
    assert read_settings(text).study == "edit-Boot/Sneaker"
