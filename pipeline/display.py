"""What a person sees while a search runs and when it is over."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fewstep.pipeline.progress import SearchProgress
from fewstep.pipeline.reports.rows import FOUND, Row, figure_text, is_found
from fewstep.pipeline.settings import SearchSettings
from fewstep.storage.masking import masked_argument
from fewstep.storage.records import EvaluationRecord

if TYPE_CHECKING:
    from fewstep.pipeline.study import Outcome, Study


NOTEBOOK_SECONDS = 0.5
PRE = "<pre style='white-space:pre;overflow-x:auto;line-height:normal'>{code}</pre>"


class _Updates(Protocol):
    def start(self) -> None: ...
    def update(self, renderable: RenderableType) -> None: ...
    def stop(self) -> None: ...


class NotebookLive:
    """One output of a notebook that is written anew. rich's own needs ipywidgets for that."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable, self._shown = renderable, 0.0
        self._handle: Any = None

    def start(self) -> None:
        """Show it."""
        from IPython.display import HTML, display

        self._handle = display(HTML(self._html()), display_id=True)

    def update(self, renderable: RenderableType) -> None:
        """Show this instead, at most every NOTEBOOK_SECONDS."""
        self._renderable = renderable
        if time.monotonic() - self._shown > NOTEBOOK_SECONDS:
            self._show()

    def stop(self) -> None:
        """Show the last state."""
        self._show()

    def _show(self) -> None:
        from IPython.display import HTML

        self._shown = time.monotonic()
        if self._handle is not None:
            self._handle.update(HTML(self._html()))

    def _html(self) -> str:
        console = Console(file=io.StringIO(), record=True, width=100, force_jupyter=False)
        console.print(self._renderable)
        return console.export_html(inline_styles=True, code_format=PRE)


def live(renderable: RenderableType, console: Console) -> _Updates | None:
    """What shows a state that changes: in a terminal or a notebook; None elsewhere."""
    if console.is_jupyter:
        return NotebookLive(renderable)
    return Live(renderable, console=console, refresh_per_second=4) if console.is_terminal else None


class SearchDisplay:
    """Live progress: what was looked at, calls, time left, best per NFE. In a terminal or a notebook; lines else.

    What is printed meanwhile, as warnings are, stands above. `known` are the records of a search that is gone on with.
    """

    def __init__(self, settings: SearchSettings, quiet: bool = False, known: Sequence[EvaluationRecord] = ()) -> None:
        self._settings, self._quiet = settings, quiet
        self._console = Console()
        self._begun = self._printed = time.monotonic()
        self._progress = SearchProgress(settings.budget, known)
        self._live = None if quiet else live(self._render(), self._console)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.update(self._render())
            self._live.stop()

    def on_record(self, record: EvaluationRecord) -> None:
        """Show what a new record changes."""
        self._progress.add(record)
        if self._live:
            self._live.update(self._render())
        elif not self._quiet and time.monotonic() - self._printed > 10:
            self._printed = time.monotonic()
            self._console.print(self._progress.line(self._printed - self._begun), highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        table, progress = Table(box=None, pad_edge=False), self._progress
        for column in ("NFE", "best so far", "found by"):
            table.add_column(column)
        for nfe in self._settings.nfes:
            record = progress.best.get(nfe)
            table.add_row(str(nfe), figure_text(record.value or 0.0) if record else "-", Text(progress.found_by(nfe)))
        seconds = time.monotonic() - self._begun
        bar = ProgressBar(total=progress.budget, completed=min(progress.spent, progress.budget), width=40)
        lines = (
            f"{self._settings.study}: {progress.phase}",
            progress.counts(),
            progress.calls(),
            progress.left(seconds),
        )
        return Group(*map(Text, lines), bar, table)


def interval_text(row: Row) -> str:
    """The value with its interval."""
    size = max(abs(row.value), abs(row.low or 0.0), abs(row.high or 0.0))
    value, low, high = (figure_text(v or 0.0, size) for v in (row.value, row.low, row.high))
    return value if row.low is None else f"{value} ({low} to {high})"


def results_table(rows: Sequence[Row]) -> Table:
    """What was found, bold, against what is stock, one column an NFE."""
    nfes = sorted({r.nfe for r in rows})
    methods = sorted({r.method for r in rows}, key=lambda m: (m != FOUND, m))
    images = max((r.images for r in rows), default=0)
    metric = rows[0].metric if rows else ""
    table = Table(title=f"{metric} on {images:,} images of the report seed, with 95% intervals; lower is better")
    table.add_column("method")
    for nfe in nfes:
        table.add_column(f"NFE {nfe}", justify="right")
    for method in methods:
        cells = []
        for nfe in nfes:
            row = next((r for r in rows if r.nfe == nfe and r.method == method), None)
            cells.append(Text(interval_text(row), "bold" if is_found(row) else "") if row else Text())
        table.add_row(Text(method), *cells, style="bold" if method == FOUND else None)
    return table


def print_measured(rows: Sequence[Row]) -> None:
    """A table for each of the other metrics."""
    for metric in dict.fromkeys(row.metric for row in rows):
        Console().print(results_table([row for row in rows if row.metric == metric]))


def plain_table(title: str, columns: list[str], rows: Sequence[Mapping[Any, Any]]) -> Table:
    """Rows of named values, numbers with four significant digits."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    for row in rows:
        values = (row[column] for column in columns)
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    return table


def print_verdicts(verdicts: Sequence[str]) -> None:
    """What was found beyond what is stock: the first thing that is said of a search."""
    for line in verdicts:
        Console(soft_wrap=True, highlight=False, markup=False).print(line)


def print_notes(study: Study) -> None:
    """What is shown of the model's own scheduler, where that is not the scheduler as it is."""
    notes = study.problem.notes if study.settings.space == "schedule" else {}
    for name, note in notes.items():
        Console(soft_wrap=True, highlight=False, markup=False).print(f"{name}: {note}")


def print_outcome(study: Study, outcome: Outcome, files: dict[str, Path], tracking_uri: str) -> None:
    """The final table, where things lie, and what to type next."""
    console = Console()
    print_verdicts(outcome.verdicts)
    console.print(results_table(outcome.rows))
    print_measured(outcome.measured)
    print_notes(study)
    root = study.root
    console.print(f"{outcome.calls:,} denoiser calls in {outcome.seconds:.0f} s", highlight=False)
    out = Console(soft_wrap=True, highlight=False)
    for name, path in files.items():
        out.print(f"{name:16} {path}")
    out.print("")
    out.print("Browse the study:      " + mlflow_command(tracking_uri))
    out.print(f"One page of results:   fewstep report --out {root} --html {root}/report.html")
    if study.settings.space != "schedule":
        out.print(f"The front's networks:   {root}/front.json, each for --quantized of sample, evaluate and search")
        return
    for _nfe, path in list(outcome.schedules.items())[:1]:
        out.print(
            f"Sample with the winner: fewstep sample --model {study.settings.model} --schedule {path} --out samples"
        )
    if outcome.schedules:
        out.print(f"Use it in diffusers:   fewstep export --study {root} --out {root}/scheduler")


def mlflow_command(uri: str) -> str:
    """How to open MLflow's page of all studies on a tracking URI, shown without its password."""
    from fewstep.storage.tracking import view_address

    uri = masked_argument(uri)
    if uri.startswith(("http://", "https://")):
        return uri
    command = f"mlflow server --backend-store-uri {uri} --host 127.0.0.1 --port 5000"
    return f"{command}   then open http://127.0.0.1:5000{view_address(uri)}"


class QuantizeDisplay:
    """Progress of a calibration with the time that is left. Prints lines where there is no terminal."""

    def __init__(self, quiet: bool = False) -> None:
        console = Console()
        self._quiet, self._live, self._console = quiet, console.is_terminal and not quiet, console
        self._progress = Progress(
            "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self._tasks: dict[str, TaskID] = {}
        self._printed = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._progress.stop()

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` parts of a phase are finished."""
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total)
        self._progress.update(self._tasks[phase], completed=done)
        if not self._live and not self._quiet and (done == total or time.monotonic() - self._printed > 10):
            self._printed = time.monotonic()
            self._console.print(f"{phase} {done}/{total}")


def coverage_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """Share of parameters and multiply-adds at each bit width."""
    table = Table(title="Coverage")
    for name in ("bits", "parameters", "multiply-adds"):
        table.add_column(name, justify="left" if name == "bits" else "right")
    totals = [max(1, sum(layer[key] for layer in layers)) for key in ("parameters", "multiply_adds")]
    groups: dict[tuple[int, int], list[int]] = {}
    for layer in layers:
        row = groups.setdefault((layer["weight_bits"], layer["activation_bits"]), [0, 0])
        row[0] += layer["parameters"]
        row[1] += layer["multiply_adds"]
    for (weight, activation), row in sorted(groups.items()):
        shares = [f"{value / total:.1%}" for value, total in zip(row, totals, strict=True)]
        table.add_row(f"W{weight} A{activation}", *shares)
    return table
