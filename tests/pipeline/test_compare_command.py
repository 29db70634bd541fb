"""`fewstep compare`: what two schedules, or two fronts, differ by on the same noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid

IMAGES = ("--images", 750)


@pytest.fixture
def fronts(toy: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Folders of studies that found schedules of 2 and 3, and of 3 and 4 calls."""
    noise = find_model(str(toy)).noise
    found = {"one": ("ddim/karras-zero", (2, 3)), "two": ("dpmpp-2m/karras-zero", (3, 4))}
    for folder, (name, nfes) in found.items():
        for nfe in nfes:
            path = tmp_path / folder / "schedules" / f"nfe{nfe}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(preset_on_grid(name, noise, nfe).to_json())
    return tmp_path / "one", tmp_path / "two"


def test_the_difference_is_that_of_the_two_values_and_its_interval_is_the_same_from_both_sides(
    toy: Path, run: Callable[..., Any]
) -> None:
    names = ("ddim/karras-zero@3", "dpmpp-2m/uniform-t-zero@4")
    rows = {}
    for first, second in (names, names[::-1]):
        asked = ("compare", "--model", toy, "--first", first, "--second", second, *IMAGES, "--out", "c", "--json")
        rows[first] = {row["method"]: row for row in run(*asked).json["rows"]}
    there, back = (rows[name] for name in names)
    assert [row["nfe"] for row in there.values()] == [3, 4, 3]
    assert there["first"]["value"] == back["second"]["value"]
    gap = there["first"]["value"] - there["second"]["value"]
    assert there["difference"]["value"] == pytest.approx(gap, rel=1e-6)
    assert there["difference"]["low"] == pytest.approx(-back["difference"]["high"], rel=1e-6)
    assert there["difference"]["low"] < gap < there["difference"]["high"]
    assert len(Store(Path("c")).evaluations.records()) == 2


def test_a_schedule_differs_from_itself_by_nothing(toy: Path, run: Callable[..., Any]) -> None:
    same = "ddim/karras-zero@2"
    rows = run("compare", "--model", toy, "--first", same, "--second", same, *IMAGES, "--out", "c", "--json").json
    # Two lines of one name would not say which is which.
    names = [row["schedule"] for row in rows["rows"][:2]]
    assert names[0] != names[1]
    assert [rows["rows"][2][end] for end in ("value", "low", "high")] == [0, 0, 0]


def test_fronts_are_compared_where_both_have_a_schedule(
    toy: Path, fronts: tuple[Path, Path], run: Callable[..., Any]
) -> None:
    one, two = fronts
    asked = ("compare", "--model", toy, "--out", "c", *IMAGES, "--csv", "c.csv", "--json")
    rows = run(*asked, "--first", one, "--second", two).json["rows"]
    assert [(row["method"], row["nfe"]) for row in rows] == [("first", 3), ("second", 3), ("difference", 3)]
    table = pd.read_csv("c.csv", comment="#")
    assert table["value"].tolist() == pytest.approx([row["value"] for row in rows], rel=1e-4)
    both = run(*asked, "--first", one, "--second", one).json["rows"]
    assert [row["nfe"] for row in both] == [2, 2, 2, 3, 3, 3]
    alone = run(*asked, "--first", one, "--second", two / "schedules" / "nfe3.json").json["rows"]
    assert alone == rows


def test_what_cannot_be_compared_is_refused(toy: Path, fronts: tuple[Path, Path], run: Callable[..., Any]) -> None:
    one, _ = fronts
    asked = ("compare", "--model", toy, "--out", "c")
    run(*asked, *IMAGES, "--first", one, "--second", "ddim/karras-zero@5").refused("[2, 3]", "[5]", "equal")
    run(*asked, *IMAGES, "--first", one / "schedules", "--second", one).refused("schedules", "finished study")
    run(*asked, "--images", 800, "--first", one, "--second", one).refused("800", "groups")
    (one / "schedules" / "again.json").write_text((one / "schedules" / "nfe3.json").read_text())
    run(*asked, *IMAGES, "--first", one, "--second", one).refused("[2, 3, 3]", "one for each")
