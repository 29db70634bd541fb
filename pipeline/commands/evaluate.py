"""`fewstep evaluate`: the Frechet distance of one schedule on a model, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import (
    AsJson,
    Classifier,
    ClassifierScale,
    Device,
    Features,
    Guidance,
    Labels,
    Model,
    NegativePrompt,
    Prompts,
    Quantized,
    Reference,
    Seed,
    Statistics,
    conditions,
    print_json,
)

NAME = "evaluate"


def command(
    model: Model,
    schedule: Annotated[str, typer.Option(help="a schedule's JSON file, or PRESET/GRID@CALLS")],
    images: Annotated[int, typer.Option(min=2, help="how many images to sample")] = 5000,
    out: Annotated[Path, typer.Option(help="tables that keep the result and its moments")] = Path("runs/evaluations"),
    seed: Seed = 1_000_003,
    features: Features = "auto",
    reference: Reference = "auto",
    labels: Labels = "none",
    guidance: Guidance = 1.0,
    prompts: Prompts = None,
    negative_prompt: NegativePrompt = "",
    classifier: Classifier = "",
    classifier_scale: ClassifierScale = 0.0,
    statistics: Statistics = "",
    quantized: Quantized = "",
    integer: Annotated[bool, typer.Option("--integer", help="run the quantised network in 8-bit integers")] = False,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "in-process",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Evaluate a schedule. The same evaluation is never computed twice; more images compute only the new ones."""
    from fewstep.pipeline.commands.search import _execution
    from fewstep.pipeline.single import Subject, evaluate
    from fewstep.pipeline.study import parse_teacher
    from fewstep.tasks.models.files import find_model

    execution = _execution(executor=executor, workers=workers, address=None, device=device)
    asked = conditions(labels, guidance, prompts, negative_prompt, classifier, classifier_scale)
    if integer and not quantized:
        raise ConfigurationError("--integer runs a quantised network: give its folder as --quantized")
    runtime: Literal["reference", "integer"] = "integer" if integer else "reference"
    subject = Subject(model, features, reference, asked, statistics, quantized, runtime)
    (record,) = evaluate(subject, [parse_teacher(schedule, find_model(model))], images, seed, out, execution)
    if as_json:
        print_json(
            {
                "model": record.model,
                "schedule": record.candidate,
                "nfe": record.nfe,
                "metric": record.features,
                "value": record.value,
                "low": record.low,
                "high": record.high,
                "images": record.images,
                "seed": record.seed,
                "denoiser_calls": record.denoiser_calls,
            }
        )
        return
    ends = "" if record.low is None else f" ({record.low:.4f} to {record.high:.4f})"
    typer.echo(f"{record.features} {record.value:.4f}{ends} at NFE {record.nfe}, {record.images:,} images")
