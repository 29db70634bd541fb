"""`fewstep.grid`: a grid from Python, and what is in its folder as tables. The command is a skin over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import ConfigurationError
from fewstep.pipeline.api import execution_of, nested
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.grid.choose import Shard
from fewstep.pipeline.grid.settings import GridSettings, grid_fields, grid_settings, read_grid_file

if TYPE_CHECKING:
    import pandas as pd

    from fewstep.pipeline.grid.grid import Grid
    from fewstep.storage.records import EvaluationRecord


def grid(
    file: str | Path | None = None,
    *,
    out: str | Path | None = None,
    only: str | Sequence[str] = (),
    shard: str | None = None,
    retry: bool = False,
    compute: bool = True,
    on_record: Callable[[EvaluationRecord], None] | None = None,
    **settings: Any,
) -> GridView:
    """Evaluate every cell of a grid that is not evaluated yet, in `out` [default: runs/NAME].

    `file` is a TOML file; `settings` are the fields of GridSettings, before those of the file: models, schedules, nfes,
    quantization, guidance, seeds, metrics, images, and the conditions' labels, prompts... `only` are patterns of cells'
    names or AXIS=VALUE; `shard` is a part, as 3/8; `retry` tries failed cells again; without `compute` nothing is
    evaluated. `settings` are the fields of ExecutionSettings too: executor, workers, device, and `known`, folders whose
    evaluations are taken.

    Raises ConfigurationError for settings that cannot be.
    """
    layers = [read_grid_file(Path(file))] if file is not None else []
    if isinstance(nfes := settings.get("nfes"), range):
        settings["nfes"] = tuple(nfes)
    asked_of = {name: settings.pop(name) for name in ExecutionSettings.model_fields if name in settings}
    execution = execution_of(**asked_of)
    chosen = grid_settings(*layers, grid_fields(nested(GridSettings, settings)))
    asked = (only,) if isinstance(only, str) else tuple(only)

    from fewstep.pipeline.grid.grid import Grid

    root = Path(out) if out is not None else Path("runs") / chosen.study
    made = Grid(chosen, root, execution, asked, Shard.parse(shard) if shard else None)
    made.run(retry, on_record, compute)
    return GridView(made)


class GridView:
    """A grid in its folder: what of it is done, as DataFrames."""

    def __init__(self, grid: Grid) -> None:
        self._grid, self._records = grid, grid.records()

    @property
    def path(self) -> Path:
        """The folder of its tables."""
        return self._grid.root

    @property
    def settings(self) -> GridSettings:
        """What it was asked for."""
        return self._grid.settings

    def cells(self) -> pd.DataFrame:
        """One row a cell: its axes, status (complete, failed or open), value with its interval, calls, error."""
        from fewstep.pipeline.grid.tables import cell_table

        return cell_table(self._grid, self._records)

    def left_out(self) -> pd.DataFrame:
        """Combinations that cannot be, with the reason."""
        from fewstep.pipeline.grid.tables import left_out_table

        return left_out_table(self._grid)

    def failed(self) -> pd.DataFrame:
        """The cells that failed, each with its error."""
        cells = self.cells()
        return cells[cells["status"] == "failed"].reset_index(drop=True)

    def leaderboard(self, top: int = 10) -> pd.DataFrame:
        """The lowest values of each metric, model and NFE, means over the seeds."""
        from fewstep.pipeline.grid.tables import leaderboard

        return leaderboard(self.cells(), top)

    def pivot(
        self, rows: str | Sequence[str] = "schedule", columns: str | Sequence[str] = "nfe", measured: str | None = None
    ) -> pd.DataFrame:
        """Values by two sets of axes: means over seeds, the lowest over the axes that are not shown.

        `measured` says which metric, as `cells` names it [default: the only one].
        """
        from fewstep.pipeline.grid.tables import pivot

        down, across = ((given,) if isinstance(given, str) else tuple(given) for given in (rows, columns))
        return pivot(self._measured(measured), down, across)

    def front(self, measured: str | None = None) -> pd.DataFrame:
        """The lowest value of each model and NFE."""
        best = self.leaderboard(1)
        rows = self._measured(measured)
        return best[best["measured"].isin(set(rows["measured"]))].reset_index(drop=True)

    def compare(self, against: str) -> pd.DataFrame:
        """Each cell less the one with the value of `against` (AXIS=VALUE), paired over the noise, with its interval."""
        from fewstep.pipeline.grid.tables import compared

        return compared(self._grid, self._records, against)

    def _measured(self, name: str | None) -> pd.DataFrame:
        from fewstep.pipeline.grid.tables import spaces

        found = spaces(self.cells())
        if name is None and len(found) == 1:
            return next(iter(found.values()))
        if name not in found:
            given = "" if name is None else f", not {name!r}"
            raise ConfigurationError(f"say measured=, one of {', '.join(found) or '(nothing is measured yet)'}{given}")
        return found[name]

    def __repr__(self) -> str:
        status = self.cells()["status"].value_counts()
        told = ", ".join(f"{count} {name}" for name, count in status.items())
        return f"<grid {self.settings.study!r} in {self.path}: {told}>"

    def _repr_html_(self) -> str:
        return str(self.leaderboard().to_html(index=False))
