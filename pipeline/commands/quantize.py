"""`fewstep quantize`: a quantised network in a folder, made of a model for a schedule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.pipeline.commands.fields import DEVICE, Fields, options
from fewstep.pipeline.commands.options import AsJson, folder, into, print_json
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.tasks.measured_settings import SubjectSettings

if TYPE_CHECKING:
    from fewstep.tasks.quantization.memory import Forecast

NAME = "quantize"
Config = Annotated[
    str,
    typer.Option(
        "--config",
        help="wBITSaBITS-PROCEDURE-COVERAGE, as w4a8-mixed-full; then +field=value for other choices; or a JSON file",
    ),
]


SUBJECT = Fields(SubjectSettings, without=("features", "reference", "metric", "quantized", "integer", "judge"))


@options(subject=SUBJECT, execution=DEVICE)
def command(
    subject: SubjectSettings,
    execution: ExecutionSettings,
    schedule: Annotated[str, typer.Option(help="what it will sample with: a schedule's file, or PRESET/GRID@CALLS")],
    out: Annotated[Path, into(help="folder to write", check=folder)],
    config: Config = "w4a8-mixed-full",
    work: Annotated[Path | None, into(help="keeps what a killed calibration had finished", check=folder)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="forecast memory and disk space, write nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Quantise a model's network for a schedule: weights packed, temporal features kept (TFMQ-DM).

    Give the conditions that it will be used with. The same command again goes on where a killed one stopped.
    """
    from fewstep.errors import ConfigurationError
    from fewstep.pipeline.display import QuantizeDisplay, coverage_table
    from fewstep.search_spaces.quantization import parse_config
    from fewstep.tasks.models.statistics import ModelStatistics
    from fewstep.tasks.quantization.build import Recipe, foresee, quantize
    from fewstep.tasks.quantization.storage import find_quantized
    from fewstep.tasks.sampling.grids import parse_schedule
    from fewstep.tasks.worker import check_device

    if out.exists():
        raise ConfigurationError(f"--out {out} is there already: choose another name, or delete it to quantise again")
    device, asked = execution.device, subject.conditions
    check_device(device)
    files = subject.files
    asked.check(files)
    learned = ModelStatistics.load_for(Path(subject.statistics), files) if subject.statistics else None
    recipe = Recipe(parse_config(config), parse_schedule(schedule, files.noise), asked, learned)
    if dry_run:
        _tell(foresee(files, recipe, device), as_json)
        return
    kept = work or Path.home() / ".cache" / "fewstep" / "calibrations"
    with QuantizeDisplay(quiet=as_json) as display:
        network, cost = quantize(files, recipe, out, kept, device, display.on_progress)
    stored = find_quantized(out)
    weights = sum(p.stat().st_size for p in files.unet.iterdir() if p.suffix in (".safetensors", ".bin"))
    full = 4 * sum(layer["parameters"] for layer in stored.description["coverage"])
    facts = {
        "folder": out,
        "config": recipe.config.name,
        "bytes": stored.bytes,
        "bytes_in_full_precision": full,
        "bytes_of_the_model_file": weights,
        "denoiser_calls": cost.denoiser_calls,
        "seconds": round(cost.seconds, 1),
        "layers": len(network.layers),
    }
    if as_json:
        print_json(facts)
        return
    from rich.console import Console

    Console().print(coverage_table(stored.description["coverage"]))
    typer.echo(
        f"{out}: {recipe.config.name}, {stored.bytes / 1024:,.0f} KiB of {full / 1024:,.0f} in full precision "
        f"({stored.bytes / full:.3f}), {cost.denoiser_calls:,} denoiser calls, {cost.seconds:.0f} s"
    )


def _tell(found: Forecast, as_json: bool) -> None:
    """Say what a calibration takes."""
    mebibytes = {
        "peak memory": found.peak,
        "network": found.network,
        "calibration inputs": found.data,
        "a pass": found.a_pass,
        f"fit of {found.largest_layer or 'nothing'}": found.largest_fit,
        "disk meanwhile": found.disk,
    }
    if as_json:
        print_json({**vars(found), "peak": found.peak})
        return
    for name, size in mebibytes.items():
        typer.echo(f"{name:40} {size / 2**20:12,.1f} MiB")
