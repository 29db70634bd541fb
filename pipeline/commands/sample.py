"""`fewstep sample`: images from a model under a schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.pipeline.commands.options import (
    AsJson,
    Classifier,
    ClassifierScale,
    Device,
    Guidance,
    Labels,
    Model,
    NegativePrompt,
    Prompts,
    Quantized,
    Seed,
    Source,
    SourceSeed,
    Statistics,
    conditions,
    print_json,
)

NAME = "sample"


def command(
    model: Model,
    schedule: Annotated[str, typer.Option(help="a schedule's JSON file, or PRESET/GRID@CALLS")],
    out: Annotated[Path, typer.Option(help="folder for the images")] = Path("samples"),
    count: Annotated[int, typer.Option(min=1, help="how many images")] = 64,
    seed: Seed = 0,
    labels: Labels = "none",
    guidance: Guidance = 1.0,
    prompts: Prompts = None,
    negative_prompt: NegativePrompt = "",
    classifier: Classifier = "",
    classifier_scale: ClassifierScale = 0.0,
    source: Source = "",
    source_seed: SourceSeed = 0,
    statistics: Statistics = "",
    quantized: Quantized = "",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Write `count` images as PNG files named by their index: image i depends on (seed, i) alone."""
    from PIL import Image

    from fewstep.pipeline.reports.pictures import to_pixels
    from fewstep.tasks.models.files import find_model
    from fewstep.tasks.sampling.grids import parse_schedule
    from fewstep.tasks.worker import Worker, WorkerSettings

    parsed = parse_schedule(schedule, find_model(model).noise)
    asked = conditions(labels, guidance, prompts, negative_prompt, classifier, classifier_scale, source, source_seed)
    settings = WorkerSettings(model, device=device, conditions=asked, statistics=statistics, quantized=quantized)
    worker = Worker(settings, features=False)
    pixels = to_pixels(worker.sample(parsed.to_json(), seed, 0, count).cpu().numpy())
    out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(out / f"{i:06d}.png")
    if as_json:
        print_json({"folder": out, "images": count, "nfe": parsed.nfe, "denoiser_calls": worker.denoiser.calls})
    else:
        typer.echo(f"{count} images at {parsed.nfe} calls each in {out}")
