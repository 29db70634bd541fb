"""For tests of the tables: small models, and a table's files as rows."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewstep.pipeline.executors.base import ExecutionSettings

ROOT = Path(__file__).resolve().parents[2]
# Benchmarks are no part of what is installed. At the end, so that nothing else is found here first.
sys.path.append(str(ROOT))

Rows = list[dict[str, str]]


def rows_of(path: Path) -> Rows:
    """The rows of a CSV file without the lines that say how it was made."""
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


@pytest.fixture(scope="session")
def make_table() -> Callable[..., dict[str, Rows]]:
    """`make_table(table, root, name="t")`: makes it in this process; rows by the name of their file."""
    from benchmarks.tables.engine import Table, make

    def call(table: Table, root: Path, name: str = "t", **more: Any) -> dict[str, Rows]:
        files = make(name, table, root, ExecutionSettings(executor="in-process"), **more)
        assert all(path.stat().st_size > 1000 for path in files if path.suffix == ".png")
        return {path.stem: rows_of(path) for path in files if path.suffix == ".csv"}

    return call


@pytest.fixture(scope="session")
def published() -> Callable[[str], list[str]]:
    """`published(name)`: the columns of a published table."""
    return lambda name: list(rows_of(ROOT / "docs" / "results" / f"{name}.csv")[0])


@pytest.fixture(scope="session")
def searched(flow: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small finished search of schedules at 3 calls. Not to be changed."""
    from benchmarks.tables.engine import Searched
    from fewstep.pipeline.settings import SearchSettings
    from fewstep.pipeline.study import Study

    settings = SearchSettings.build(
        model=str(flow),
        nfes=(3,),
        budget=16_000,
        screen="frechet",
        refine=0.0,
        preset_images=32,
        look_images=100,
        frechet_images=250,
        keep=0.5,
        grids=("uniform-t-zero",),
        report_images=250,
        teacher="dpmpp-2m/uniform-t-zero@6",
    )
    study = Study(tmp_path_factory.mktemp("searched") / "search", settings)
    study.run(ExecutionSettings(executor="in-process"), "test")
    return Searched(study)
