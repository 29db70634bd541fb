"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option("--model", help="a bundled model's name or a diffusers directory")]
Out = Annotated[Path, typer.Option("--out", help="directory of the study")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]
Features = Annotated[str, typer.Option("--features", help="auto, inception or a classifier's folder")]
Reference = Annotated[str, typer.Option("--reference", help="auto, a folder of images, an .npz file or a data set")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="seed of the starting noise")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object for scripts")]


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    typer.echo(json.dumps(value, default=str))
