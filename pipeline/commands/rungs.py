"""`fewstep rungs`: how well the cheap evaluations of a search order schedules as the report does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import AsJson, Device, print_json, typed
from fewstep.pipeline.settings import parse_nfes

NAME = "rungs"


def command(
    study: Annotated[Path, typer.Argument(help="folder of a finished search of schedules")],
    out: Annotated[Path, typer.Option(help="tables that keep the results; the same command goes on")] = Path(
        "runs/rungs"
    ),
    nfe: Annotated[str | None, typer.Option(help="denoiser calls, as 3-6 or 3,5,8 [default: the search's]")] = None,
    candidates: Annotated[int, typer.Option(min=6, help="schedules of each NFE, evenly by the search's rank")] = 24,
    distance_images: Annotated[str, typer.Option(help="images of the distances to the teacher")] = "64,128,256",
    frechet_images: Annotated[str, typer.Option(help="images of the Frechet distances")] = "250,500,1000,5000",
    report_images: Annotated[int, typer.Option(min=2, help="images of the report, on other noise")] = 10_000,
    csv: Annotated[Path | None, typer.Option(help="copy the table here")] = None,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "in-process",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Evaluate schedules of a search at every rung, and say how each rung's order agrees with the report's.

    Kendall's tau is 1 for the same order, 0 for none. What a rung cannot tell apart it should not decide.
    """
    from fewstep.files import write_text
    from fewstep.pipeline.commands.options import execution_settings
    from fewstep.pipeline.reports.csv import results_csv
    from fewstep.pipeline.rung_table import rung_table
    from fewstep.pipeline.study import Study

    found = Study.load(study)
    if found.settings.space != "schedule":
        raise ConfigurationError(f"{study} searched {found.settings.space}: give a search of schedules")
    rows = rung_table(
        found,
        parse_nfes(nfe) if nfe else found.settings.nfes,
        candidates,
        _counts(distance_images, "--distance-images"),
        _counts(frechet_images, "--frechet-images"),
        report_images,
        out,
        execution_settings(executor=executor, workers=workers, address=None, device=device),
    )
    seeds = {"search": found.settings.noise_seed, "report": found.settings.report_seed}
    notes = {
        "interval": "95%, bootstrap over the candidates",
        "chosen": "the report's rank of the candidate that the rung likes best",
        "report": f"{report_images} images",
    }
    text = results_csv(rows, typed(), seeds, notes)
    files = [write_text(path, text) for path in (out / "rungs.csv", csv) if path is not None]
    if as_json:
        print_json({"rows": [vars(row) for row in rows], "files": files})
        return
    for row in rows:
        ends = f"{row.tau:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        typer.echo(
            f"NFE {row.nfe:<3} {row.rung:17} {row.images:>6} images {row.calls:>7,} calls  tau {ends}  "
            f"better half {row.tau_better_half:+.2f}  its best is number {row.chosen} of {row.candidates}"
        )


def _counts(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    bad = [part for part in parts if not part.isdecimal() or int(part) < 2]
    if bad:
        raise ConfigurationError(f"{option} {text!r}: {bad[0]!r} is no number of images; write it as 250,1000")
    return tuple(map(int, parts))
