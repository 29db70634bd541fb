"""`fewstep bound`: the Wasserstein-2 bound of latent flow matching, beside the truth or for a trained model."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import AsJson, Device, Labels, Seed, print_json, typed

if TYPE_CHECKING:
    from fewstep.tasks.flow.trained import Term

NAME = "bound"
COLUMNS = ("bound", "sharp", "profile")


def command(
    model: Annotated[str | None, typer.Argument(help="a bundled model's name or a diffusers directory")] = None,
    mixtures: Annotated[
        int, typer.Option(min=0, help="instead of a model: this many random mixtures whose distance is known")
    ] = 0,
    images: Annotated[int, typer.Option(min=2, help="images of the means, at most those that there are")] = 2000,
    points: Annotated[int, typer.Option(min=2, help="images at which Lipschitz constants are looked for")] = 128,
    times: Annotated[int, typer.Option(min=1, help="equal cells of the time from 0 to 1")] = 32,
    iterations: Annotated[int, typer.Option(min=1, help="power iterations at each point")] = 20,
    data: Annotated[
        str, typer.Option(help="auto (what the model was trained on), a data set or a folder of images")
    ] = "auto",
    labels: Labels = "none",
    seed: Seed = 0,
    device: Device = "cpu",
    csv: Annotated[Path | None, typer.Option(help="write the table here")] = None,
    plot: Annotated[Path | None, typer.Option(help="with --mixtures: picture of the tightness (.png, .svg)")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="with a model: put the table between this file's bound markers")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How far samples can be from the data: reconstruction error + decoder's constant times the flow's error.

    With --mixtures latents are Gaussian mixtures and the decoder is linear, so that the distance itself is known, and
    the exit code is 1 where a bound is below it. With a MODEL every term is printed with its 95% interval and with
    what it is: certified, or an estimate.
    """
    if (model is None) == (mixtures == 0):
        raise ConfigurationError("give either a model or --mixtures COUNT")
    if model is None:
        if markdown is not None:
            raise ConfigurationError("--markdown shows the terms of a model: leave it out with --mixtures")
        _mixtures(mixtures, seed, csv, plot, as_json)
        return
    if plot is not None:
        raise ConfigurationError("--plot draws the tightness of --mixtures: leave it out for a model")
    from fewstep.files import write_text
    from fewstep.pipeline.reports.csv import results_csv
    from fewstep.pipeline.reports.markdown import insert_between_markers
    from fewstep.tasks.flow.trained import Plan, find_data, measure
    from fewstep.tasks.models.files import find_model
    from fewstep.tasks.worker import check_device

    check_device(device)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")  # what torch.func itself imports
    files = find_model(model)
    plan = Plan(images, points, times, iterations, seed)
    tell = None if as_json else (lambda text: typer.echo(f"{text} ...", err=True))
    found = measure(files, find_data(files, data), plan, labels, device, tell)
    if csv is not None:
        notes = {"interval": INTERVAL, **{f"note {i + 1}": note for i, note in enumerate(found.notes)}}
        write_text(csv, results_csv(found.terms, typed(), {"noise": seed}, notes))
    if markdown is not None:
        insert_between_markers(markdown, _markdown(found.terms, found.notes), "bound")
    if as_json:
        print_json({"model": files.name, "terms": [_finite(asdict(t)) for t in found.terms], "notes": found.notes})
        return
    _print(files.name, found.terms, found.notes)


INTERVAL = (
    "95%, normal, from the scatter of images within each time; of a bound: the ends of its terms put in (at least 90% "
    "together); of a Lipschitz constant: from what was found to what is certified"
)


def _mixtures(count: int, seed: int, csv: Path | None, plot: Path | None, as_json: bool) -> None:
    from fewstep.files import write_text
    from fewstep.pipeline.reports.csv import results_csv
    from fewstep.tasks.flow.tightness import tightness

    rows = tightness(count, seed)
    text = results_csv(rows, typed(), {"cases from": seed}, {"interval": "none: closed forms and quadrature"})
    if csv is not None:
        write_text(csv, text)
    if plot is not None:
        from fewstep.dashboards.bound import draw_tightness

        draw_tightness(text, plot)
    held = sum(row.holds for row in rows)
    ratios = {name: sorted(getattr(row, name) / row.truth for row in rows) for name in COLUMNS}
    quantiles = {name: [v[0], v[len(v) // 2], v[-1]] for name, v in ratios.items()}
    if as_json:
        print_json({"cases": count, "held": held, "over_truth_least_median_greatest": quantiles})
    else:
        typer.echo(f"the bound held in {held} of {count} cases")
        for name, (least, median, greatest) in quantiles.items():
            typer.echo(f"{name:8} / true W2: {least:.3g} least, {median:.3g} median, {greatest:.3g} greatest")
    if held < count:
        raise typer.Exit(1)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: it becomes null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _cells(term: Term) -> tuple[str, str, str, str, str]:
    """A line for people: term, images, value, interval, what the truth is."""
    from fewstep.tasks.flow.trained import CERTIFIED, PLUG_IN, UNBIASED

    words = {CERTIFIED: "certified: at most this", UNBIASED: "near this", PLUG_IN: "not certified"}
    law = f"{term.count:,} {term.law}" if term.count else ""
    ends = "" if term.low == term.high else f"{_figure(term.low)} to {_figure(term.high)}"
    return term.term, law, _figure(term.value, term.log10), ends, words.get(term.says, f"{term.says} this")


HEAD = ("term", "images", "value", "95% interval", "the truth is")


def _markdown(terms: tuple[Term, ...], notes: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|---:|---|---|"]
    lines += ["| " + " | ".join(_cells(term)) + " |" for term in terms]
    return "\n".join([*lines, "", f"`{typed()}`", *(f"\nNote: {note}." for note in notes)])


def _print(name: str, terms: tuple[Term, ...], notes: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Wasserstein-2 bound of {name}; distances are norms of images in [-1, 1]")
    for column in HEAD:
        table.add_column(column, justify="right" if column == "value" else "left")
    for term in terms:
        table.add_row(*_cells(term), style="bold" if term.term.startswith("bound") else None)
    Console().print(table)
    for note in notes:
        typer.echo(f"note: {note}")


def _figure(value: float, log10: float = math.inf) -> str:
    """Four digits; a power of ten where the value is no double but its logarithm is known."""
    if math.isfinite(value):
        return f"{value:.4g}"
    return f"10^{log10:.4g}" if math.isfinite(log10) else "infinite"
