"""Code in the documentation is right: it runs, or, where it cannot run here, it is parsed by what would run it.

README.md and docs/tutorial.md run from top to bottom. Of every other page commands go through the real command line up
to the point where they would start, Python compiles and finds the names it uses, JSON and TOML are read by the types
that they are for. `NOT_RUN` says why a page does not run.
"""

from __future__ import annotations

import ast
import configparser
import inspect
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import fewstep
from fewstep.errors import FewstepError
from fewstep.pipeline import api
from fewstep.pipeline.cli import app, main
from fewstep.pipeline.editing.settings import EditSettings
from fewstep.pipeline.forecast import calls_at_most
from fewstep.pipeline.grid import api as grid_api
from fewstep.pipeline.grid.settings import GridSettings
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study_file import read_study_file, resolved, search_settings
from fewstep.pipeline.values import fields_of
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.measured_settings import SubjectSettings

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_WORDS = 900

# Of click, which typer brings or holds itself.
UsageError: Any = typer.BadParameter.__base__

BIG = "its models and images are the reader's, or take hours"
NOT_RUN = {
    "CONTRIBUTING.md": "makes an environment and runs the tests themselves",
    "docs/cluster.md": "needs a cluster and servers",
    "docs/dashboard.md": "servers; their pages have tests of their own",
    "docs/editing.md": BIG,
    "docs/extending.md": "tests/plugin is that package, and is run by tests of its own",
    "docs/flow.md": BIG,
    "docs/flow_bound.md": "the tables take minutes",
    "docs/flow_conditions.md": BIG,
    "docs/grids.md": "a grid of hundreds of cells takes minutes",
    "docs/inputs.md": BIG,
    "docs/metrics.md": BIG,
    "docs/mlflow.md": "servers; their pages have tests of their own",
    "docs/models.md": BIG,
    "docs/papers/boundary.md": BIG,
    "docs/papers/lfm.md": BIG,
    "docs/papers/s3.md": BIG,
    "docs/papers/tfmq.md": BIG,
    "docs/papers/usf.md": BIG,
    "docs/quantization.md": "a calibration takes minutes",
    "docs/real_weights.md": "weights and images of many gigabytes, and a GPU",
    "docs/reference/commands.md": "usage lines, made from the commands themselves",
    "docs/reference/house.md": "the map of CONTRIBUTING.md, included",
    "docs/reference/schedule.md": "files alone, which are read",
    "docs/refinement.md": "tuning takes minutes",
    "docs/searching.md": "a search of half a million calls takes minutes",
    "docs/stable_diffusion.md": "weights and images of many gigabytes, and a GPU",
    "docs/storage.md": "needs a finished study and a server",
    "docs/index.md": "shows where the pages are",
}
"""Why the blocks of a page are only parsed."""

OTHERS = {
    ".venv/bin/pre-commit": "changes the checkout",
    "kubectl": "needs a cluster",
    "mlflow": "starts a server",
    "optuna-dashboard": "starts a server",
    "ray": "needs a cluster",
    "ssh": "needs another machine",
    "tar": "unpacks what is not here",
}
"""Programs that are not this project's, and why they are not run."""

UNFINISHED = (EditConfig, EditSettings, EditSubject)
"""What `fewstep edit` completes itself: a step may be auto, and a boundary's folder says what it is a boundary of."""

FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "python", "toml", "json", "text", "", "{toctree}", "{include} ../../CONTRIBUTING.md"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path, *languages: str) -> list[tuple[str, str]]:
    return [(kind, text) for kind, text in FENCE.findall(path.read_text()) if not languages or kind in languages]


def _lines(text: str) -> list[str]:
    """The commands of a sh block, without their comments."""
    joined = text.replace("\\\n", " ")
    return [re.split(r"\s#", line)[0].strip() for line in joined.splitlines() if line.strip() and line[0] != "#"]


def _all(language: str) -> list[Any]:
    found = [(page, text) for page in PAGES for _, text in _blocks(page, language)]
    return [pytest.param(text, id=f"{_name(page)}-{i}") for i, (page, text) in enumerate(found)]


# What runs


def _file_of(text: str) -> str:
    """The name that the first line of a TOML block gives its file."""
    found = re.match(r"# (\S+\.toml)\n", text)
    assert found, f"a TOML block begins with its file's name, as # study.toml, not with {text.splitlines()[0]!r}"
    return found[1]


SMALL: dict[Path, dict[str, str]] = {
    README: {
        "--budget 60000": "--budget 11000 --frechet-images 64 --paired-images 16 --report-images 250",
        "budget=60_000": "budget=11_000, frechet_images=64, paired_images=16, report_images=250",
    },
    TUTORIAL: {"budget = 60_000 ": "budget = 11_000\nfrechet_images = 64\npaired_images = 16\nreport_images = 250 "},
}
"""What takes seconds in the place of a page's minutes; its words hold for both."""


def _small(page: Path) -> Iterator[tuple[str, str]]:
    """A page's blocks, as the tests run them."""
    left = set(SMALL[page])
    for language, text in _blocks(page, "python", "toml", "sh"):
        for old in SMALL[page]:
            if old in text:
                left.discard(old)
                text = text.replace(old, SMALL[page][old])
        yield language, text
    assert not left, f"{_name(page)} no longer says {sorted(left)}"


def _command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line, but for what would change the environment that the tests run in."""
    program, *arguments = shlex.split(line)
    assert program in ("fewstep", "pip", "make"), line
    if program == "fewstep":
        monkeypatch.setattr(sys, "argv", ["fewstep", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, line


def _follow(page: Path, monkeypatch: pytest.MonkeyPatch, patched: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Do what a page says, in the working directory; `patched` is what to put in other things' place, by block."""
    names: dict[str, Any] = {"__name__": page.stem}
    for i, (language, text) in enumerate(_small(page)):
        if language == "python":
            with monkeypatch.context() as patch:
                for name, value in patched.get(i, {}).items():
                    patch.setattr(name, value)
                exec(compile(text, page.name, "exec"), names)
        elif language == "toml":
            Path(_file_of(text)).write_text(text)
        else:
            for line in _lines(text):
                _command(line, monkeypatch)
    return names


@pytest.mark.slow
def test_the_readme_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("docs", "tasks"):
        Path(name).symlink_to(ROOT / name)
    _follow(README, monkeypatch, {})
    for made in ("clothes.png", "runs/first/schedules/nfe4.json", "scheduler/scheduler_config.json"):
        assert Path(made).is_file(), f"the README's commands did not make {made}"


@pytest.fixture
def small_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The place of the bundled digits, with a small untrained network in it."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    import fewstep.tasks.models.files as files

    bundled, folder = files.find_model("digits-ddpm").root, tmp_path / "bundled"
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (4,)}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 2}
    network = UNet2DModel(**sizes, **blocks, add_attention=False)
    scheduler = DDPMScheduler.from_pretrained(bundled, subfolder="scheduler")
    DDPMPipeline(network, scheduler).save_pretrained(str(folder))
    shutil.copytree(bundled / "classifier", folder / "classifier")
    return lambda name: SimpleNamespace(root={"digits-ddpm": folder}[name])


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_digits: Any
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    bundled = {"fewstep.tasks.models.files.find_model": small_digits}
    names = _follow(TUTORIAL, monkeypatch, {0: bundled, 1: bundled})
    for made in ("report.html", "samples/000015.png", "compared.png", "fast-model/scheduler/scheduler_config.json"):
        assert Path(made).is_file(), f"the tutorial did not make {made}"
    assert names["again"].scheduler.config == names["pipe"].scheduler.config


# What is parsed


def test_every_page_runs_or_says_why_not() -> None:
    shown = {_name(page) for page in PAGES if _blocks(page, "sh", "python", "toml", "json")}
    assert shown - NOT_RUN.keys() <= {_name(README), _name(TUTORIAL)}, "say in NOT_RUN why a page does not run"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_block_is_of_a_known_language_and_closed(page: Path) -> None:
    assert {language for language, _ in _blocks(page)} <= LANGUAGES
    assert len(re.findall(r"^```", page.read_text(), re.MULTILINE)) == 2 * len(_blocks(page))


@cache
def _root() -> Any:
    return typer.main.get_command(app)


def _parse(words: list[str]) -> list[tuple[Any, Any]]:
    """Let the command line read a command up to the point where it would start; raises what is wrong with it.

    Gives each settings type that the command has, with what was given of it.
    """
    command, name, context = _root(), "fewstep", None
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
        context.resilient_parsing = False
        name, command, words = command.resolve_command(context, words)
    given = command.make_context(name, list(words), parent=context).params
    # Options that may be repeated come as empty lists where they are not given; commands get None.
    given = {key: None if value in ([], ()) else value for key, value in given.items()}
    taken = []
    for fields in getattr(command.callback, "fields", {}).values():
        values = fields.take(given)
        if fields.partial and fields.settings not in UNFINISHED:
            _checked(fields.settings, values)
        taken.append((fields.settings, values))
    return taken


def _checked(settings: Any, values: dict[str, Any]) -> None:
    """Settings of a command that gets what was given alone: the rest is in a file, in a study, or a default."""
    required = {name: "digits-ddpm" for name, info in settings.model_fields.items() if info.is_required()}
    if settings is SearchSettings:
        # Schedules would be read from files; a space of networks has its calls from one.
        left = {"warm_start", "base_schedule"} | ({"space"} if "base_schedule" in values else set())
        values = resolved({name: value for name, value in values.items() if name not in left})
    settings.build(**(required | values))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without the files that the pages speak of, but prompts, which are read with the options."""
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _check_line(line: str) -> None:
    words = shlex.split(line)
    program, rest = words[0], words[1:]
    if program == "fewstep":
        _parse(rest)
    elif "fewstep" in words:  # handed to something that starts it
        _parse(words[words.index("fewstep") + 1 :])
    elif "fewstep.pipeline.cli" in words:
        _parse(words[words.index("fewstep.pipeline.cli") + 1 :])
    elif program == "python" and rest[0] == "-m":
        assert any((ROOT / f"{rest[1].replace('.', '/')}{end}").is_file() for end in (".py", "/__main__.py")), line
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), line
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), line
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {name for word in rest for name in re.findall(r"fewstep\[(.*)\]", word)} <= extras.keys(), line
    else:
        assert program in OTHERS, f"{line!r}: say in OTHERS why {program} is not run"


@pytest.mark.parametrize("text", _all("sh"))
def test_commands_are_understood(text: str, elsewhere: Path) -> None:
    for line in _lines(text):
        try:
            _check_line(line)
        except (UsageError, FewstepError) as error:
            pytest.fail(f"{line}\n{error}")


@pytest.mark.parametrize("wrong", ["search --modell x", "serch", "search --screen maybe --model m", "zoo extra"])
def test_commands_that_are_not_understood_fail(wrong: str, elsewhere: Path) -> None:
    with pytest.raises((UsageError, FewstepError)):
        _parse(wrong.split())


def test_inline_options_of_the_readme_exist() -> None:
    written = {
        option for code in re.findall(r"`([^`\n]+)`", README.read_text()) for option in re.findall("--[a-z-]+", code)
    }
    context = _root().make_context("fewstep", [], resilient_parsing=True)
    commands = [_root().get_command(context, name) for name in _root().list_commands(context)]
    assert written <= {option for command in commands for parameter in command.params for option in parameter.opts}


def test_the_costs_of_published_models_are_the_forecasts(elsewhere: Path) -> None:
    """Calls do not depend on the model, so that a bundled one takes the place of each."""
    page = (ROOT / "docs" / "real_weights.md").read_text()
    stated = [(row[0], row[1]) for row in re.findall(r"^\| [^|]+ \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)]
    lines = [line for _, text in FENCE.findall(page) for line in _lines(text) if line.startswith("fewstep search ")]
    told = []
    for line in lines:
        given = dict(_parse(shlex.split(line)[1:]))[SearchSettings]
        sizes = {name: given[name] for name in ("nfes", "budget", "report_images")}
        metric = tuple(name.partition(":")[0] for name in given.get("metric", ("frechet",)))
        figures = calls_at_most(ScheduleProblem(search_settings({**sizes, "metric": metric, "model": "digits-ddpm"})))
        told.append((f"{figures['budget']:,}", f"{figures['total_calls_at_most']:,}"))
    assert stated == told


# Where names of Python come from

RETURNS = {"search": fewstep.StudyView, "load_study": fewstep.StudyView, "grid": fewstep.GridView}
TAKES = {
    "search": (api.search, SearchSettings),
    "evaluate": (api.evaluate, SubjectSettings),
    "grid": (grid_api.grid, GridSettings),
    "load_study": (api.load_study, None),
}


def _defined(module: str) -> set[str]:
    """The names that a module of ours defines or imports at its top, read from its file."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert file.is_file(), f"there is no module {module}"
    found = {child.stem for child in path.glob("*.py")} if path.is_dir() else set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return found


def _check_names(text: str) -> None:
    views: dict[str, Any] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fewstep":
            known = set(fewstep.__all__) if node.module == "fewstep" else _defined(node.module or "")
            assert {alias.name for alias in node.names} <= known, ast.unparse(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fewstep":
            assert node.attr in fewstep.__all__, ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"fewstep.{name}" for name in TAKES}:
            function, settings = TAKES[ast.unparse(node.func).removeprefix("fewstep.")]
            known = set(inspect.signature(function).parameters)
            known |= {path.rpartition(".")[2] for path in fields_of(settings)} if settings else set()
            known |= set(settings.model_fields) if settings else set()
            assert {keyword.arg for keyword in node.keywords} <= known, ast.unparse(node)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            name = ast.unparse(node.value.func).removeprefix("fewstep.")
            if name in RETURNS and isinstance(node.targets[0], ast.Name):
                views[node.targets[0].id] = RETURNS[name]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in views:
            assert hasattr(views[node.value.id], node.attr), ast.unparse(node)


@pytest.mark.parametrize("text", _all("python"))
def test_python_compiles_and_finds_its_names(text: str) -> None:
    _check_names(text)


@pytest.mark.parametrize(
    "wrong",
    [
        "import fewstep\nfewstep.serch()",
        "from fewstep.storage import nothing_of_that_name",
        "import fewstep\nfewstep.search(modell='x')",
        "import fewstep\nstudy = fewstep.load_study('x')\nstudy.fronts()",
        "def f(:",
    ],
)
def test_python_with_wrong_names_fails(wrong: str) -> None:
    with pytest.raises((AssertionError, SyntaxError)):
        _check_names(wrong)


@pytest.mark.parametrize("text", _all("toml"))
def test_toml_is_read_by_what_it_is_for(text: str, elsewhere: Path) -> None:
    from fewstep.pipeline.grid.settings import grid_settings, read_grid_file
    from fewstep.tasks.training.recipe import TrainingRecipe

    fields = tomllib.loads(text)
    if "project" in fields:
        installed = configparser.ConfigParser()
        installed.optionxform = str  # type: ignore[assignment]
        installed.read(next((ROOT / "tests" / "plugin").glob("*.dist-info")) / "entry_points.txt")
        assert fields["project"]["entry-points"] == {name: dict(installed[name]) for name in installed.sections()}
        return
    path = elsewhere / _file_of(text)
    path.write_text(text)
    if "models" in fields:
        grid_settings(read_grid_file(path))
    elif "objective" in fields:
        assert fields.keys() - {"preset"} <= TrainingRecipe.model_fields.keys()
    else:
        search_settings(read_study_file(path))


@pytest.mark.parametrize("text", _all("json"))
def test_json_is_read(text: str) -> None:
    fields = json.loads(text)
    if "lambdas" in fields:
        SolverSchedule.from_json(text)


# The README


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= MOST_WORDS


def test_no_command_of_the_readme_is_longer_than_a_line() -> None:
    for _, text in _blocks(README, "sh"):
        assert [line for line in text.splitlines() if line.endswith("\\") or len(line) > 120] == []
