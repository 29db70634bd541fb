"""Options come from the settings: every field can be given, every command that samples offers the same ones."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from fewstep.errors import ConfigurationError, StorageError
from fewstep.pipeline.baseline_settings import BaselineSettings
from fewstep.pipeline.cli import COMMANDS
from fewstep.pipeline.commands.fields import Fields
from fewstep.pipeline.commands.options import drawable, folder, writable
from fewstep.pipeline.commands.search import CHOSEN
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.values import fields_of, find_field, value_of
from fewstep.tasks.measured_settings import SubjectSettings
from fewstep.tasks.models.conditions import Conditions

Run = Callable[..., Any]
EVALUATES = ("search", "refine", "baseline", "evaluate", "compare", "explain", "export")
SAMPLES = (*EVALUATES, "sample", "statistics", "quantize")
LISTED = [name for group in COMMANDS.values() for name in group]


def _functions(name: str) -> list[Callable[..., None]]:
    module = import_module(f"fewstep.pipeline.commands.{name}")
    if hasattr(module, "app"):
        return [command.callback for command in module.app.registered_commands]
    return [module.command]


def _flags(name: str) -> set[str]:
    (function,) = _functions(name)
    found = set()
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(info, typer.models.OptionInfo):
                declared = [info.default, *(info.param_decls or ())]
                found |= {flag for text in declared if isinstance(text, str) for flag in text.split("/")}
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_every_command_that_samples_offers_every_condition(name: str) -> None:
    assert {"--" + field.replace("_", "-") for field in Conditions.model_fields} <= _flags(name)


@pytest.mark.parametrize("name", EVALUATES)
def test_every_command_that_evaluates_offers_where_it_runs_and_what_by(name: str) -> None:
    settings = {"--" + field for field in ExecutionSettings.model_fields}
    assert settings | {"--model", "--features", "--reference", "--statistics"} <= _flags(name)


@pytest.mark.parametrize("name", LISTED)
def test_few_parameters_of_a_command_are_typed_by_hand(name: str) -> None:
    for function in _functions(name):
        by_hand = [p for p in inspect.signature(inspect.unwrap(function)).parameters if p not in ("as_json",)]
        assert len(by_hand) <= 13, by_hand


def test_every_setting_of_a_search_is_an_option() -> None:
    renamed = {"nfes": "--nfe", "base_schedule": "--schedule"}
    for path in fields_of(SearchSettings):
        flag = renamed.get(path, "--" + path.rpartition(".")[2].replace("_", "-"))
        assert _flags("search") & {flag, f"--no-{flag.removeprefix('--')}"}, path


TEXTS = {
    "study": ("mine", "mine"),
    "nfes": ("3-5,8", (3, 4, 5, 8)),
    "budget": ("1e6", 1_000_000),
    "sampler": ("evolution", "evolution"),
    "keep": ("0.5", 0.5),
    "grids": ("uniform-t-zero, karras-zero", ("uniform-t-zero", "karras-zero")),
    "decisions": ('["start", "skips"]', ("start", "skips")),
    "report_presets": ("no", False),
    "guidance_range": ("1:8", (1.0, 8.0)),
    "random_trials": ("0", 0),
    "presets": ("0.1", 0.1),
    "look_images": ("250", 250),
    "finalists": ("5", 5),
    "refined_elites": ("3", 3),
    "conditions.labels": ("3", "3"),
    "conditions.guidance": ("2", 2.0),
    "conditions.source_seed": ("4", 4),
}


@pytest.mark.parametrize("path", TEXTS)
def test_a_setting_is_read_from_text_as_its_type_says(path: str) -> None:
    text, value = TEXTS[path]
    given = CHOSEN.take({"set": ["model=m", f"{path}={text}"]})
    made = SearchSettings.build(**given)
    table, _, name = path.rpartition(".")
    assert getattr(getattr(made, table) if table else made, name) == value
    option = CHOSEN.take({path.rpartition(".")[2]: text})
    assert option == {key: value for key, value in given.items() if key != "model"}


def test_none_is_a_value_of_what_may_be_none() -> None:
    path, info = find_field(SearchSettings, "guidance_range")
    assert value_of(path, info, "none") is None
    path, info = find_field(SearchSettings, "surrogate")
    assert value_of(path, info, "none") == "none"


def test_an_unknown_setting_is_answered_with_the_valid_ones_and_their_defaults(run: Run) -> None:
    run("search", "--model", "digits-ddpm", "--set", "color=red").refused(
        "'color'", "finals (0.1)", "conditions.labels"
    )
    run("search", "--model", "digits-ddpm", "--set", "keep").refused("--set keep=VALUE")
    run("search", "--model", "digits-ddpm", "--set", "keep=much").refused("keep", "much")


def test_a_commands_own_defaults_give_way_to_what_is_given() -> None:
    group = Fields(BaselineSettings, defaults={"seed": 7})
    assert group.take({"model": "m"}) == BaselineSettings(model="m", seed=7)
    assert group.take({"model": "m", "seed": "8", "nfes": "3-4"}).nfes == (3, 4)


def test_a_quantised_network_alone_runs_in_integers() -> None:
    with pytest.raises(ConfigurationError, match="--quantized"):
        Fields(SubjectSettings).take({"model": "m", "integer": True})


# -- help -----------------------------------------------------------------------------------------------


def test_the_help_lists_the_commands_in_their_groups_and_each_has_help(run: Run) -> None:
    shown = run("--help").out
    places = [shown.index(f"\n{title}:") for title in COMMANDS]
    assert places == sorted(places)
    assert len(LISTED) <= 20
    for name in LISTED:
        assert f"\n  {name} " in shown
        assert run(name, "--help").code == 0
    assert run("no-such-command").code == 2


def test_light_commands_start_without_torch() -> None:
    code = (
        "import sys; from fewstep.pipeline import cli\n"
        "for words in sys.argv[1:]:\n"
        "    sys.argv = ['fewstep', *words.split()]\n"
        "    try: cli.main()\n"
        "    except SystemExit: pass\n"
        "    assert not {'torch', 'ray', 'pandas'} & set(sys.modules), words\n"
    )
    light = ["--help", "zoo --help", "report --help", "train --help", "search --help", "evaluate --help"]
    done = subprocess.run([sys.executable, "-P", "-c", code, *light], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# -- where results go -----------------------------------------------------------------------------------


def test_what_cannot_be_written_is_refused_before_anything_is_computed(run: Run, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.csv", tmp_path / "folder"):
        with pytest.raises(StorageError, match="cannot write"):
            writable(path)
        same = ("--first", "ddim@2", "--second", "ddim@3")
        run("compare", "--model", toy, *same, "--csv", path).refused("cannot write", path)
        run("baseline", "--model", toy, "--out", "b", "--csv", path).refused("cannot write", path)
        run("report", "--out", "s", "--html", path).refused("cannot write", path)
    run("baseline", "--model", toy, "--out", "b", "--plot", "a.bmp").refused("a.bmp", ".svg")
    run("sample", "--model", toy, "--schedule", "ddim@2", "--out", tmp_path / "file").refused("file", "folder")
    assert writable(tmp_path / "new" / "a.csv") == tmp_path / "new" / "a.csv"
    assert folder(tmp_path / "folder") == tmp_path / "folder"
    assert drawable(None) is writable(None) is folder(None) is None
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_conditions_reach_what_is_evaluated(run: Run, tmp_path: Path) -> None:
    """The commands that had no way to ask for them: labels and guidance change what `compare` measures."""
    same = ("--first", "ddim@2", "--second", "ddim@2", "--images", 750, "--out", "c", "--json")
    rows = [
        run("compare", "--model", "fashion-ddpm", *same, *asked).json["rows"]
        for asked in (("--labels", "3"), ("--labels", "3", "--guidance", 4))
    ]
    assert rows[0][0]["value"] != rows[1][0]["value"]
    run("compare", "--model", "fashion-ddpm", *same, "--negative-prompt", "x", "--prompts", "absent").refused("absent")
    assert json.dumps(rows[0])
