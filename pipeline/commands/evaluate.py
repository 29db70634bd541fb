"""`fewstep evaluate`: the Frechet distance of one schedule or ODE solver on a model, with its interval."""

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
    JudgeName,
    Labels,
    Model,
    NegativePrompt,
    Prompts,
    Quantized,
    Reference,
    Seed,
    Source,
    SourceSeed,
    Statistics,
    conditions,
    print_json,
)

NAME = "evaluate"


def command(
    model: Model,
    schedule: Annotated[str | None, typer.Option(help="a schedule's JSON file, or PRESET/GRID@CALLS")] = None,
    ode: Annotated[
        str | None, typer.Option(help="an ODE solver instead: dopri5 (adaptive), or euler, midpoint, heun as heun@6")
    ] = None,
    rtol: Annotated[float, typer.Option(help="dopri5's relative tolerance")] = 1e-5,
    atol: Annotated[float, typer.Option(help="dopri5's absolute tolerance")] = 1e-5,
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
    source: Source = "",
    source_seed: SourceSeed = 0,
    statistics: Statistics = "",
    judge: JudgeName = "",
    quantized: Quantized = "",
    integer: Annotated[bool, typer.Option("--integer", help="run the quantised network in 8-bit integers")] = False,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "in-process",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Evaluate a schedule or an ODE solver.

    The same evaluation is never computed twice; more images compute only the new ones.
    """
    from fewstep.pipeline.campaign import Subject, evaluate
    from fewstep.pipeline.commands.options import execution_settings
    from fewstep.search_spaces.ode import parse_ode
    from fewstep.tasks.models.files import find_model
    from fewstep.tasks.sampling.grids import parse_schedule

    if (schedule is None) == (ode is None):
        raise ConfigurationError("say what to evaluate: --schedule FILE or PRESET/GRID@CALLS, or --ode SOLVER")
    execution = execution_settings(executor=executor, workers=workers, address=None, device=device)
    asked = conditions(labels, guidance, prompts, negative_prompt, classifier, classifier_scale, source, source_seed)
    if integer and not quantized:
        raise ConfigurationError("--integer runs a quantised network: give its folder as --quantized")
    runtime: Literal["reference", "integer"] = "integer" if integer else "reference"
    if integer and ode == "dopri5":
        raise ConfigurationError("integers run at one time a batch, dopri5 at one an image: leave --integer out")
    subject = Subject(model, features, reference, asked, statistics, quantized, runtime, judge)
    sampler = parse_ode(ode, atol, rtol) if ode is not None else parse_schedule(str(schedule), find_model(model).noise)
    (record,) = evaluate(subject, [sampler], images, seed, out, execution)
    nfe = record.metrics.get("nfe", record.nfe)
    if as_json:
        print_json(
            {
                "model": record.model,
                "schedule": record.candidate,
                "nfe": nfe,
                "metric": record.features,
                "value": record.value,
                "low": record.low,
                "high": record.high,
                "images": record.images,
                "seed": record.seed,
                "denoiser_calls": record.denoiser_calls,
                **{name: value for name, value in record.metrics.items() if name.startswith("accuracy")},
            }
        )
        return
    ends = "" if record.low is None else f" ({record.low:.4f} to {record.high:.4f})"
    typer.echo(f"{record.features} {record.value:.4f}{ends} at NFE {nfe:g}, {record.images:,} images")
    if "accuracy" in record.metrics:
        low, high = record.metrics["accuracy_low"], record.metrics["accuracy_high"]
        typer.echo(f"accuracy {record.metrics['accuracy']:.4f} ({low:.4f} to {high:.4f}) by judge {judge}")
