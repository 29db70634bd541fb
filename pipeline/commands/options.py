"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError, StorageError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.tasks.models.conditions import Conditions, read_prompts

Model = Annotated[str, typer.Option("--model", help="a bundled model's name or a diffusers directory")]
Out = Annotated[Path, typer.Option("--out", help="directory of the study")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]
Features = Annotated[str, typer.Option("--features", help="auto, inception or a classifier's folder")]
Reference = Annotated[str, typer.Option("--reference", help="auto, a folder of images, an .npz file or a data set")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="seed of the starting noise")]
Labels = Annotated[str, typer.Option("--labels", help="none, balanced (image i gets label i mod K) or one label")]
Guidance = Annotated[float, typer.Option("--guidance", min=0, help="scale of classifier-free guidance; 1: none")]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="file with one prompt a line")]
NegativePrompt = Annotated[str, typer.Option("--negative-prompt", help="what guidance leads away from")]
Classifier = Annotated[str, typer.Option("--classifier", help="folder of a classifier that guides to the labels")]
ClassifierScale = Annotated[float, typer.Option("--classifier-scale", min=0, help="scale of classifier guidance")]
Source = Annotated[
    str, typer.Option("--source", help="for inpainting and layouts: part of the data set to be shown, test or train")
]
SourceSeed = Annotated[int, typer.Option("--source-seed", min=0, help="seed of the holes to paint")]
Statistics = Annotated[str, typer.Option("--statistics", help="file made by `fewstep statistics`")]
Quantized = Annotated[str, typer.Option("--quantized", help="folder made by `fewstep quantize`: sample with it")]
JudgeName = Annotated[
    str, typer.Option("--judge", help="classifier that counts images which show their label: a name or a folder")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object for scripts")]
Tracking = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server or database [default: in --out]")]


def writable(path: Path | None) -> Path | None:
    """A file that can be written, before anything is computed for it; StorageError where it cannot."""
    if path is None:
        return None
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a folder; give the name of a file in it")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "is no folder" if not there.is_dir() else "may not be written to"
        raise StorageError(f"cannot write {path}: {there} {reason}; choose another place")
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
    if path.exists() and not path.is_dir():
        raise StorageError(f"cannot write into {path}: it is a file; give a folder")
    writable(path / "file")
    return path


PICTURES = (".png", ".svg", ".pdf")
Csv = Annotated[Path | None, typer.Option("--csv", help="copy the table here", callback=writable)]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="copy the picture here (.png, .svg or .pdf)", callback=drawable)
]


def conditions(
    labels: str = "none",
    guidance: float = 1.0,
    prompts: Path | None = None,
    negative_prompt: str = "",
    classifier: str = "",
    classifier_scale: float = 0.0,
    source: str = "",
    source_seed: int = 0,
) -> Conditions:
    """What the options above ask a model for; DataError where the prompt file cannot be read."""
    if source not in ("", "train", "test"):
        raise ConfigurationError(f"unknown source {source!r}: give test or train")
    return Conditions(
        labels=labels,
        prompts=read_prompts(prompts),
        negative_prompt=negative_prompt,
        guidance=guidance,
        classifier=classifier,
        classifier_scale=classifier_scale,
        source=source,
        source_seed=source_seed,
    )


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    typer.echo(json.dumps(value, default=str))


def typed() -> str:
    """What was typed, as tables and studies keep it."""
    return "fewstep " + " ".join(sys.argv[1:])


def execution_settings(**fields: Any) -> ExecutionSettings:
    """Where a command runs; ConfigurationError for an executor that there is none of."""
    return ExecutionSettings.build(**fields)
