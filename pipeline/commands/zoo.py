"""`fewstep zoo`: the bundled models."""

from __future__ import annotations

import typer

from fewstep.files import read_json
from fewstep.pipeline.commands.options import AsJson, print_json

NAME = "zoo"


def command(as_json: AsJson = False) -> None:
    """List the bundled models with their figures."""
    from fewstep.tasks.models.files import bundled_models

    entries = []
    for files in bundled_models():
        card = read_json(files.root / "card.json")
        entries.append({"name": files.name, "images": f"{files.channels}x{files.size}x{files.size}", **card})
    if as_json:
        print_json({"models": entries})
        return
    for entry in entries:
        rest = ", ".join(f"{key} {value}" for key, value in entry.items() if key != "name")
        typer.echo(f"{entry['name']:16} {rest}")
