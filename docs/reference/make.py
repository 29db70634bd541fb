"""Write what of the reference is generated: the commands' page and the JSON Schema of a schedule.

    python docs/reference/make.py

`tests/test_docs_reference.py` fails while either is not what this makes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from fewstep.files import write_text
from fewstep.pipeline.cli import COMMANDS, app
from fewstep.search_spaces.schedule import SolverSchedule

HERE = Path(__file__).resolve().parent
PAGE = HERE / "commands.md"
SCHEMA = HERE / "schedule.schema.json"

HEAD = """# Commands

Every command and option, as `fewstep COMMAND --help` has them; `python docs/reference/make.py` writes this page.

A command that fails prints one line that begins with `error:` and exits with 2. A command that was stopped exits
with 128 and the signal's number. An option that may be repeated takes one value each time.
"""


def commands_page() -> str:
    """The page of all commands, one section each, in the order of `fewstep --help`."""
    root = typer.main.get_command(app)
    context = root.make_context("fewstep", [], resilient_parsing=True)
    parts = [HEAD]
    for title, group in COMMANDS.items():
        parts.append(f"## {title.capitalize()}\n")
        for name in group:
            parts += _sections(f"fewstep {name}", root.get_command(context, name))
    return "\n".join(parts)


def _sections(name: str, command: Any) -> Iterator[str]:
    with command.make_context(name, [], resilient_parsing=True) as context:
        if hasattr(command, "commands"):
            yield f"### {name}\n\n{_prose(command.help)}\n"
            for inner, found in command.commands.items():
                yield from _sections(f"{name} {inner}", found)
            return
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"### {name}\n\n{_prose(command.help)}\n\n```text\n{name} {usage}\n```\n"
        seen = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
        yield _table(seen, context)
        hidden = [p for p in command.params if getattr(p, "hidden", False)]
        if hidden:
            yield f"Settings that are options too, and that `{name} --help` leaves out:\n"
            yield _table(hidden, context)


def _table(parameters: list[Any], context: Any) -> str:
    escaped = "\\|"  # in a table, in code too
    rows = ["| option | meaning |", "|---|---|"]
    for parameter in parameters:
        told = copy.copy(parameter)
        told.hidden = False
        names, text = told.get_help_record(context)
        if told.param_type_name == "argument":
            names = names.partition(" ")[0]
        rows.append(f"| `{names.replace('|', escaped)}` | {_cell(text)} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    one = " ".join(text.split())
    for sign in "\\|*_<>":
        one = one.replace(sign, f"\\{sign}")
    return one


def _prose(text: str | None) -> str:
    return "\n\n".join(_cell(part) for part in (text or "").split("\n\n"))


def schema_text() -> str:
    """The JSON Schema of a schedule's file."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **SolverSchedule.model_json_schema(),
        "title": "A few-step solver schedule, version 1",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text(PAGE, commands_page())
    write_text(SCHEMA, schema_text())
