"""The table of several searches: what stands in it is the mean over them, and compares search by search."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.tables.front import Front, together
from benchmarks.tables.peers import Peers
from fewstep.errors import ConfigurationError

MakeTable = Callable[..., dict[str, list[dict[str, str]]]]


def test_every_search_has_seeds_of_its_own_and_all_of_them_are_one_figure(
    flow: Path, tmp_path: Path, make_table: MakeTable
) -> None:
    peers = Peers(
        model=str(flow),
        methods=("presets", "fewstep"),
        nfes=(2,),
        grids=("uniform-t-zero",),
        presets=("ddim", "unipc-2-bh2"),
        screen_images=250,
        report_images=250,
        teacher="dpmpp-2m/uniform-t-zero@6",
        budget=10_000,
    )
    made = make_table(Front(peers=peers, searches=(0, 3)), tmp_path)
    one, every = made["t_searches"], made["t"]
    assert [(r["search"], r["method"]) for r in one] == [(s, m) for s in "03" for m in peers.methods]
    for row in every:
        values = [float(r["value"]) for r in one if r["method"] == row["method"]]
        assert len(set(values)) == 2
        assert float(row["value"]) == pytest.approx(sum(values) / 2, rel=1e-4)
        assert float(row["low"]) < min(values) <= max(values) < float(row["high"])
    assert all(int(r["own"]) > 0 for r in one if r["method"] != "presets")
    assert all(r["own"] == "" for r in one if r["method"] == "presets")
    with pytest.raises(ConfigurationError, match="two seeds"):
        Front.build(peers=peers, searches=(1, 1))


def test_methods_are_compared_search_by_search() -> None:
    rows = [
        {"search": s, "model": "m", "method": m, "nfe": 3, "metric": "fid", "value": v * scale, "kid": v * scale**2,
         "images": 10, "calls": 5, "own": 7 if m == "b" else ""}
        for s, v in enumerate((1.0, 4.0, 9.0)) for m, scale in (("presets", 1.0), ("b", 0.5))
    ]  # fmt: skip
    found = {(r["method"], r["metric"]): r for r in together(rows, ["kid"])}
    assert list(found) == [("presets", "fid"), ("presets", "kid"), ("b", "fid"), ("b", "kid")]
    # Searches differ by far more than methods do, and all the same alike.
    for metric, ratio in (("fid", 0.5), ("kid", 0.25)):
        row = found["b", metric]
        assert (row["versus"], row["versus_low"], row["versus_high"]) == pytest.approx((ratio,) * 3)
        assert row["low"] < found["presets", metric]["value"] < row["high"] or metric == "kid"
    assert found["b", "fid"]["own"] == 7
    other = {(r["method"], r["metric"]): r for r in together(rows, ["kid"], base="b")}
    assert other["presets", "fid"]["versus"] == pytest.approx(2.0)
    assert other["b", "fid"]["versus"] == pytest.approx(1.0)
    assert math.isclose(found["presets", "fid"]["value"], 14 / 3)
