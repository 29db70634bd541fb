"""The table of peers: chosen on search seeds, reported on others, with every call counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.tables.engine import Searched
from benchmarks.tables.peers import Peers
from fewstep.search_spaces.point import parse_point, schedule_of
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.sampling.grids import preset_on_grid

MakeTable = Callable[..., dict[str, list[dict[str, str]]]]
PLAN = RefinePlan(images=8, validation=4, batch=4, iterations=3, check_every=2)


@pytest.fixture
def elsewhere(flow: Path, tmp_path: Path) -> str:
    """The file of a schedule from elsewhere."""
    schedule = preset_on_grid("unipc-3-bh1/quadratic-zero", find_model(str(flow)).noise, 3)
    (tmp_path / "found.json").write_text(schedule.to_json())
    return str(tmp_path / "found.json")


def test_peers_are_chosen_on_search_seeds_and_their_calls_add_up(
    flow: Path, elsewhere: str, tmp_path: Path, make_table: MakeTable, published: Callable[[str], list[str]]
) -> None:
    asked = Peers(
        model=str(flow),
        methods=("gits", "ld3", "tuned", "random"),
        nfes=(3,),
        grids=("karras-zero",),
        presets=("ddim", "dpmpp-2m", "unipc-2-bh2", "deis-3"),
        starts=(24.0,),
        screen_images=250,
        report_images=250,
        teacher="dpmpp-2m/uniform-t-zero@6",
        plan=PLAN,
        budget=20_000,
        found=elsewhere,
    )
    rows = make_table(asked, tmp_path)["t"]
    assert all(list(rows[0]) == published(n) for n in ("digits_peers", "fashion_front", "digits_transfer"))
    assert [r["method"] for r in rows] == ["presets", "gits", "ld3", "tuned", "random", "found", "refined"]
    by_method = {r["method"]: r for r in rows}
    calls = {r["method"]: int(r["calls"]) for r in rows}
    records = Store(tmp_path).evaluations.records()
    assert {r.rung: r.seed for r in records} == {"look": 0, "search": 0, "report": 1_000_003}
    stock = [r for r in records if r.origin == "peer:presets" and r.value is not None]
    judged = {r.candidate: r.value for r in stock if r.rung == "search" and r.value is not None}
    looked = [r for r in stock if r.rung == "look"]
    assert float(by_method["presets"]["searched"]) == pytest.approx(min(judged.values()), rel=1e-5)
    assert calls["presets"] == 3 * (250 * len(judged) + 64 * len(looked))
    # With an analytic first call, too.
    schedules = [schedule_of(parse_point(r.candidate_json)) for r in looked]
    assert {s.first_call for s in schedules if s} == {"model", "zero_x0"}
    pairs, looks = 12 * 6, 12
    # Gradients, checks, and noises that move: of each batch, and of validation after each pass.
    learned = pairs + looks + (3 * 3 * 4 + (1 + 2 * 2) * 4 + 3 * 4 + 4 * 4) * (3 + 1)
    extra = calls["ld3"] - calls["presets"] - learned
    # The first call of the start is judged again with what came of it; where iterates coincide, once. LD3 tunes the
    # first told time, so every call has a way back.
    assert extra in (250 * 3, 2 * 250 * 3, 3 * 250 * 3)
    assert calls["found"] == 250 * 3
    assert (calls["gits"] - 60 * 256) % (3 * 2) == 0
    assert calls["presets"] < calls["tuned"] <= asked.budget + 250 * 3
    assert 0.95 * asked.budget <= calls["random"] - 250 * 3 <= asked.budget + 250 * 3
    assert make_table(asked, tmp_path)["t"] == rows
    assert len(Store(tmp_path).evaluations.records()) == len(records)


def test_where_many_compete_few_are_judged_on_all_images_and_known_calls_are_told(
    flow: Path, searched: Searched, tmp_path: Path, make_table: MakeTable
) -> None:
    asked = Peers(
        model=str(flow),
        methods=("presets",),
        nfes=(3,),
        grids=("karras-zero", "uniform-t-zero"),
        screen_images=1000,
        report_images=250,
        found=str(searched.study.root),
        refine_found=False,
    )
    rows = make_table(asked, tmp_path)["t"]
    assert [(r["method"], int(r["calls"])) for r in rows][1:] == [("found", searched.calls(3))]
    records = [r for r in Store(tmp_path).evaluations.records() if r.origin == "peer:presets" and r.nfe == 3]
    looked = {r.candidate: r.value for r in records if r.rung == "look" and r.value is not None}
    judged = {r.candidate: r.value for r in records if r.rung == "search" and r.value is not None}
    best = sorted(looked, key=lambda h: looked[h])[:6]
    assert set(best) <= set(judged)
    assert len(judged) <= len(best) + 1, "and what controls the looks"
    assert float(rows[0]["searched"]) == pytest.approx(min(judged.values()), rel=1e-5)
    assert int(rows[0]["calls"]) == 3 * (64 * len(looked) + 1000 * len(judged))


def test_peers_far_behind_are_reported_on_a_part_of_the_images(
    flow: Path, elsewhere: str, tmp_path: Path, make_table: MakeTable
) -> None:
    asked = Peers(
        model=str(flow),
        methods=("presets", "gits"),
        nfes=(3,),
        grids=("karras-zero", "uniform-t-zero"),
        presets=("dpmpp-2m", "unipc-2-bh2"),
        starts=(24.0,),
        screen_images=250,
        report_images=1000,
        report_best=1,
        found=elsewhere,
        refine_found=False,
    )
    rows = {r["method"]: r for r in make_table(asked, tmp_path)["t"]}
    assert rows["found"]["images"] == "1000", "what is no peer is always reported in full"
    first = [r.value for r in Store(tmp_path).evaluations.records() if r.rung == "first report" and r.value is not None]
    whole, part = sorted((rows["presets"], rows["gits"]), key=lambda r: -int(r["images"]))
    assert (whole["images"], part["images"]) == ("1000", "250")
    assert any(float(part["value"]) == pytest.approx(value, rel=1e-5) for value in first)
    everything = make_table(asked.model_copy(update={"report_best": 0}), tmp_path)["t"]
    assert {r["images"] for r in everything} == {"1000"}
    assert rows["found"] in everything
