"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError
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


def guidance_range(text: str) -> tuple[float, tuple[float, float] | None]:
    """`7.5` is a fixed scale, `1:8` a range to search, whose middle the presets get; ConfigurationError else."""
    low, colon, high = text.partition(":")
    try:
        ends = float(low), float(high if colon else low)
    except ValueError:
        raise ConfigurationError(f"guidance {text!r}: give a scale, as 7.5, or a range to search, as 1:8") from None
    return 0.5 * (ends[0] + ends[1]), ends if colon else None


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    typer.echo(json.dumps(value, default=str))


def typed() -> str:
    """What was typed, as tables and studies keep it."""
    return "fewstep " + " ".join(sys.argv[1:])


def execution_settings(**fields: Any) -> ExecutionSettings:
    """Where a command runs; ConfigurationError for an executor that there is none of."""
    return ExecutionSettings.build(**fields)
