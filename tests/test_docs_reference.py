"""What of the reference is generated is current, and the published schema says what the reader of schedules says."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
FOUND = sorted((ROOT / "docs" / "results" / "schedules").glob("*.json"))


@pytest.fixture(scope="module")
def make() -> Any:
    spec = importlib.util.spec_from_file_location("docs_reference", REFERENCE / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads((REFERENCE / "schedule.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_commands_are_those_of_the_command_line(make: Any) -> None:
    assert make.PAGE.read_text() == make.commands_page(), "run python docs/reference/make.py"


def test_the_schema_is_that_of_the_type(make: Any) -> None:
    assert make.SCHEMA.read_text() == make.schema_text(), "run python docs/reference/make.py"


def test_schedules_fit_the_schema(validator: Any) -> None:
    assert FOUND
    for path in FOUND:
        validator.validate(json.loads(path.read_text()))
        validator.validate(json.loads(SolverSchedule.from_json(path.read_text()).to_json()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema_version"], 2),
        (["lambdas", 0], "far"),
        (["lambdas"], [0.0]),
        (["steps"], []),
        (["steps", 0, "prediction"], "velocity"),
        (["steps", 0, "predictor", "start"], 0),
        (["steps", 0, "unheard_of"], 1),
        (["first_call"], "none"),
        (["guidance"], -1),
        (["unheard_of"], 1),
    ],
)
def test_what_the_schema_refuses_the_reader_refuses(path: list[Any], value: Any, validator: Any) -> None:
    fields = json.loads(FOUND[0].read_text())
    place = fields
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert list(validator.iter_errors(fields))
    with pytest.raises(ScheduleError):
        SolverSchedule.from_json(json.dumps(fields))


def test_the_page_describes_every_field() -> None:
    schema = json.loads((REFERENCE / "schedule.schema.json").read_text())
    page = (REFERENCE / "schedule.md").read_text()
    named = set(re.findall(r"`([a-z_0-9]+)`", page))
    parts = [schema, *schema["$defs"].values()]
    assert {name for part in parts for name in part.get("properties", {})} - named == set()
