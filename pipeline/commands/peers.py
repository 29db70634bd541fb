"""`fewstep peers`: other ways to few steps on the same model, through the same evaluation, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import (
    AsJson,
    Device,
    Features,
    Guidance,
    Labels,
    Model,
    Reference,
    Seed,
    conditions,
    print_json,
    typed,
)
from fewstep.pipeline.settings import parse_nfes

NAME = "peers"
METHODS = "presets,gits,ld3,s4s,gas"


def command(
    model: Model,
    out: Annotated[Path, typer.Option(help="tables that keep every result; the same command goes on from there")],
    methods: Annotated[
        str,
        typer.Option(help=f"of {METHODS},random,tpe,nsgaii,cmaes,evolution; comma-separated"),
    ] = METHODS,
    nfe: Annotated[str, typer.Option(help="denoiser calls, as 3-6 or 3,5,8")] = "3-6,8,10",
    found: Annotated[
        Path | None, typer.Option(help="schedule file or study folder: judged as it is, and refined")
    ] = None,
    refine_found: Annotated[
        bool, typer.Option("--refine-found/--as-found", help="whether the found ones are also refined")
    ] = True,
    screen_images: Annotated[int, typer.Option(min=2, help="images by which each method's best is chosen")] = 2000,
    report_images: Annotated[int, typer.Option(min=2, help="images of the table")] = 10_000,
    report_best: Annotated[
        int, typer.Option(min=0, help="peers of each NFE that see all of them, the others a quarter; 0: all")
    ] = 0,
    teacher: Annotated[str, typer.Option(help="what the learned ones learn from, as PRESET/GRID@CALLS")] = (
        "unipc-2-bh2/karras-zero@64"
    ),
    distance: Annotated[str, typer.Option(help="of the learned ones: network, pixel or features")] = "network",
    iterations: Annotated[int, typer.Option(min=1, help="steps of Adam of each learned one")] = 300,
    budget: Annotated[int, typer.Option(min=1, help="denoiser calls of each search at each NFE")] = 100_000,
    seed: Seed = 0,
    features: Features = "auto",
    reference: Reference = "auto",
    labels: Labels = "none",
    guidance: Guidance = 1.0,
    csv: Annotated[Path | None, typer.Option(help="copy the table here")] = None,
    markdown: Annotated[Path | None, typer.Option(help="put the table between this file's peers markers")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="forecast the denoiser calls, run nothing")] = False,
    executor: Annotated[str, typer.Option(help="ray or in-process, for the evaluations")] = "in-process",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    address: Annotated[str | None, typer.Option(help="join the Ray cluster at this address")] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Stock presets, GITS, LD3, S4S and GAS, and searches by other samplers: quality, and the calls each took.

    Each method's best is chosen on --seed and reported on other noise. Nothing is computed twice: killed, the same
    command goes on.
    """
    from fewstep.files import write_text
    from fewstep.pipeline.commands.options import execution_settings
    from fewstep.pipeline.commands.search import warm_starts
    from fewstep.pipeline.peers import Peers
    from fewstep.pipeline.peers_settings import PeersSettings, calls
    from fewstep.pipeline.reports.csv import results_csv
    from fewstep.pipeline.reports.markdown import insert_between_markers, results_markdown
    from fewstep.pipeline.reports.provenance import footnote
    from fewstep.tasks.refinement.plan import RefinePlan

    try:
        settings = PeersSettings(
            model=model,
            features=features,
            reference=reference,
            conditions=conditions(labels, guidance),
            methods=tuple(part.strip() for part in methods.split(",") if part.strip()),
            nfes=parse_nfes(nfe),
            screen_images=screen_images,
            report_images=report_images,
            report_best=report_best,
            teacher=teacher,
            plan=RefinePlan.build(distance=distance, iterations=iterations, seed=seed),
            budget=budget,
            found=warm_starts(found, "--found") or (),
            found_calls=_calls_of(found),
            refine_found=refine_found,
            seed=seed,
        )
    except ValidationError as error:
        raise ConfigurationError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    if dry_run:
        most = calls(settings)
        print_json({"calls": most}) if as_json else typer.echo(f"at most {most:,} denoiser calls")
        return
    execution = execution_settings(executor=executor, workers=workers, address=address, device=device)
    table = Peers(settings, out, execution, tell=None if as_json else typer.echo)
    rows = table.run()
    command_line = typed()
    notes = {"calls": "denoiser calls that finding the schedule took, a backward one as two"}
    text = results_csv(rows, command_line, settings.seeds, notes)
    files = [write_text(path, text) for path in (out / "peers.csv", csv) if path is not None]
    if markdown is not None:
        most, least = (f(row.images for row in rows) for f in (max, min))
        star = f" (with a star: {least:,})" if least < most else ""
        note = f"{rows[0].metric}, {most:,} images{star}, lower is better. {footnote(command_line, settings.seeds)}."
        insert_between_markers(markdown, results_markdown(rows, note), "peers")
        files.append(markdown)
    if as_json:
        print_json({"rows": [vars(row) for row in rows], "files": files})
        return
    for row in rows:
        typer.echo(_line(row))


def _calls_of(found: Path | None) -> dict[int, int]:
    """By NFE the calls of the search in a study's folder, its report apart; nothing of a file."""
    from fewstep.pipeline.study import Study

    if found is None or not found.is_dir():
        return {}
    study = Study.load(found)
    calls: dict[int, int] = {}
    for record in study.store.evaluations.records({"study": study.settings.study}):
        if record.rung != "report":
            calls[record.nfe] = calls.get(record.nfe, 0) + record.denoiser_calls
    return calls


def _line(row: Any) -> str:
    ends = f"({row.low:.3f} to {row.high:.3f})" if row.low is not None else ""
    return f"{row.method:10} NFE {row.nfe:<3} {row.metric} {row.value:.3f} {ends}  {row.calls:,} calls  {row.schedule}"
