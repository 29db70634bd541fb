"""Options that several commands share and no settings have, and what they print with."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.errors import ConfigurationError, StorageError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.stopping import resume_with, spelled, typed
from fewstep.search_spaces.checked import LARGEST_SEED

if TYPE_CHECKING:
    from fewstep.pipeline.study import Study

__all__ = ["typed"]

Model = Annotated[str, typer.Option("--model", help="a bundled model's name or a diffusers directory")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="seed of the starting noise")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object for scripts")]
Optuna = Annotated[
    str | None,
    typer.Option("--optuna", help="database (an address) or journal file (*.log) of Optuna [default: in --out]"),
]
Tracking = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server or database [default: in --out]")]


def place(text: str | Path) -> Path:
    """A path; ConfigurationError for an empty one, which would be this folder."""
    if not str(text):
        raise ConfigurationError("a path is empty: give a name, or . for this folder")
    return Path(text)


def into(*names: str, help: str, check: Callable[[Path | None], Path | None]) -> Any:
    """An option for what is written; `check` is one of the functions below."""
    return typer.Option(*names, help=help, callback=check, parser=place, metavar="PATH")


def writable(path: Path | None) -> Path | None:
    """A file that can be written, before anything is computed for it; StorageError where it cannot.

    What it tries in the nearest folder that exists is gone when it returns.
    """
    if path is None:
        return None
    try:
        if path.is_dir():
            raise StorageError(f"cannot write {path}: it is a folder; give the name of a file in it")
        if path.exists() and not path.is_file():
            raise StorageError(f"cannot write {path}: it is no file; choose another place")
        there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not there.is_dir():
            raise StorageError(f"cannot write {path}: {there} is no folder; choose another place")
        # Its name may be too long, or what is written aside of it.
        with suppress(FileNotFoundError):
            path.with_name(f"{path.name}.{os.getpid()}.tmp").lstat()
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; choose another place") from None
    try:
        with tempfile.TemporaryFile(dir=there) as tried:
            tried.write(b"tried")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {there}: {error.strerror}; choose another place") from None
    return path


def drawable(path: Path | None) -> Path | None:
    """The same for a picture, whose name says its kind."""
    if path is not None and path.suffix.lower() not in PICTURES:
        raise ConfigurationError(f"{path} is no picture's name: end it with {', '.join(PICTURES)}")
    return writable(path)


def folder(path: Path | None) -> Path | None:
    """A folder that can be made and written to, or StorageError."""
    if path is None:
        return None
    try:
        if os.path.lexists(path) and not path.is_dir():
            raise StorageError(f"cannot write into {path}: it is no folder; choose another place")
    except OSError as error:
        raise StorageError(f"cannot write into {path}: {error.strerror}; choose another place") from None
    writable(path / "file")
    return path


Out = Annotated[Path, typer.Option("--out", help="directory of the study", parser=place, metavar="PATH")]
PICTURES = (".png", ".svg", ".pdf")
Csv = Annotated[Path | None, into("--csv", help="copy the table here", check=writable)]
Plot = Annotated[Path | None, into("--plot", help="copy the picture here (.png, .svg or .pdf)", check=drawable)]


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout; StorageError where it takes none."""
    try:
        typer.echo(json.dumps(value, default=str))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write to stdout: {error.strerror}") from None


def resumed(words: Sequence[str], study: Study, execution: ExecutionSettings, **options: Any) -> None:
    """Let a stopped search say how to go on: with --resume, or as it was typed where nothing is on disk yet."""
    given = {"resume": True, "out": study.root, **execution.model_dump(exclude_defaults=True), **options}
    resume_with(lambda: spelled(words, given) if study.exists else typed())
