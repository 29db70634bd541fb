"""`fewstep sample`: images from a model under a schedule."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer

from fewstep.pipeline.commands.fields import DEVICE, UNMEASURED, options
from fewstep.pipeline.commands.options import AsJson, Seed, folder, into, print_json
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.tasks.measured_settings import MOST_IMAGES, SubjectSettings

NAME = "sample"


@options(subject=UNMEASURED, execution=DEVICE)
def command(
    subject: SubjectSettings,
    execution: ExecutionSettings,
    schedule: Annotated[str, typer.Option(help="a schedule's JSON file, or PRESET/GRID@CALLS")],
    out: Annotated[Path, into(help="folder for the images", check=folder)] = Path("samples"),
    count: Annotated[int, typer.Option(min=1, max=MOST_IMAGES, help="how many images")] = 64,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write `count` images as PNG files named by their index: image i depends on (seed, i) alone."""
    from PIL import Image

    from fewstep.files import write_whole
    from fewstep.pipeline.reports.pictures import to_pixels
    from fewstep.pipeline.subjects import subject_of
    from fewstep.search_spaces.point import as_point
    from fewstep.tasks.sampling.grids import parse_schedule
    from fewstep.tasks.work import WorkerSettings
    from fewstep.tasks.worker import Worker

    parsed = parse_schedule(schedule, subject.files.noise)
    worker = Worker(WorkerSettings(subject_of(subject), execution.device))
    pixels = to_pixels(worker.render(as_point(parsed), seed, 0, count).cpu().numpy())
    for i, image in enumerate(pixels):
        picture = BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(picture, "PNG")
        write_whole(out / f"{i:06d}.png", picture.getvalue())
    if as_json:
        print_json({"folder": out, "images": count, "nfe": parsed.nfe, "denoiser_calls": worker.calls})
    else:
        typer.echo(f"{count} images at {parsed.nfe} calls each in {out}")
