"""The table of costs: what a search ends with at each budget, and after how many calls it is as good as another."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.tables.cost import Cost, calls_from, ratios
from benchmarks.tables.peers import Peers
from fewstep.errors import ConfigurationError

MakeTable = Callable[..., dict[str, list[dict[str, str]]]]


def test_every_budget_is_a_search_and_the_evolution_is_followed(
    flow: Path, tmp_path: Path, make_table: MakeTable
) -> None:
    peers = Peers(
        model=str(flow),
        methods=("presets",),
        nfes=(2,),
        grids=("uniform-t-zero",),
        presets=("ddim", "unipc-2-bh2"),
        screen_images=250,
        report_images=250,
    )
    made = make_table(Cost(peers=peers, searches=(0, 1), budgets=(4000, 5000), evaluations=48, judged=250), tmp_path)
    rows = made["t_searches"]
    for seed in "01":
        held = [r for r in rows if r["search"] == seed]
        ours = [r for r in held if r["method"] == "fewstep"]
        assert [int(r["budget"]) for r in ours] == [8000, 10_000]
        assert all(0 < int(r["calls"]) <= int(r["budget"]) for r in ours)
        theirs = [r for r in held if r["method"] == "evolution"]
        # The same points as ours, and the end.
        assert [int(r["budget"]) for r in theirs] == [8000, 10_000, 20_000, 24_000]
        assert all(int(r["calls"]) <= int(r["budget"]) + 251 * 2 for r in theirs)
        assert len(held) == 1 + len(ours) + len(theirs)
    assert {r["nfe"] for r in rows} == {"2"}
    assert {int(r["pairs"]) for r in made["t_ratio"]} == {4}
    assert (tmp_path / "t.png").stat().st_size > 10_000
    with pytest.raises(ConfigurationError, match="rising"):
        Cost.build(peers=peers, budgets=(5000, 4000))


def test_a_search_is_as_good_only_where_no_larger_budget_is_worse() -> None:
    points = [{"budget": b, "calls": b - 1, "value": v} for b, v in ((10, 1.0), (20, 3.0), (40, 2.0), (80, 1.5))]
    assert calls_from(points, "value", 2.0) == 39
    assert calls_from(points, "value", 1.4) == math.inf
    assert calls_from(points, "value", 3.0) == 9


def test_ratios_are_over_all_pairs_and_what_is_never_reached_is_infinite() -> None:
    def row(search: int, method: str, budget: int, value: float) -> dict[str, object]:
        return {"model": "m", "search": search, "method": method, "nfe": 3, "metric": "fid", "budget": budget,
                "calls": budget, "value": value}  # fmt: skip

    rows = [row(s, "evolution", b, v) for s, end in ((0, 2.0), (1, 1.0)) for b, v in ((50, 9.0), (100, end))]
    rows += [row(0, "fewstep", 10, 1.5), row(0, "fewstep", 20, 0.5), row(1, "fewstep", 10, 3.0)]
    [found] = ratios(rows, ())
    # Search 0 is as good as the first evolution from 10 calls on, as the second from 20; search 1 never.
    assert found["reached"] == 0.5
    assert (found["quarter"], found["median"], found["three_quarters"]) == (0.2, math.inf, math.inf)
    assert found["pairs"] == 4
    assert found["calls_of_evolution"] == 100
