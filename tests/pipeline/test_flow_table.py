"""ODE solvers through the pipeline, the judge's accuracy, and the tables of a flow: `flow-table`, `guidance-table`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.errors import ConfigurationError
from fewstep.pipeline.campaign import Subject, evaluate
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.flow_table import FlowTableSettings, peers
from fewstep.search_spaces.ode import OdeSettings
from fewstep.storage.store import Store
from fewstep.tasks.flow.ode import OdeSampler
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.judge import JudgeNetwork, load_judge
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.worker import Worker, WorkerSettings

Run = Callable[..., Any]
HERE = ExecutionSettings(executor="in-process")
LOOSE = OdeSettings(atol=3e-2, rtol=3e-2)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory, make_tiny_flow: Callable[..., Path]) -> Path:
    """An untrained flow on latents 2x4x4 of 8x8 images, with labels, and the digits' features."""
    return make_tiny_flow(tmp_path_factory.mktemp("flow") / "digits-flow")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained judge: a fixed function of images, which is all that counting needs."""
    folder = tmp_path_factory.mktemp("judge")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = JudgeNetwork(1, 8, 10, 4)
        network.head.weight.data *= 50
        network.save(folder)
    return folder


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


def test_samples_and_calls_of_an_image_depend_on_it_alone(flow: Path) -> None:
    """Whatever the start, the count and the size of batches: up to what float32 does, far below the tolerance."""
    asked = Conditions(labels="balanced", guidance=1.5)
    worker = Worker(WorkerSettings(str(flow), conditions=asked))
    whole = worker.sample(LOOSE.to_json(), 7, 0, 9)
    calls = worker.calls
    worker.batch = 4
    parts = [worker.sample(LOOSE.to_json(), 7, start, 3) for start in (0, 3, 6)]
    assert worker.calls == 2 * calls
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-3)
    # The same by the sampler itself, one image at a time.
    denoiser = Denoiser(find_model(str(flow)), conditions=asked)
    sampler = OdeSampler.of(denoiser, LOOSE)
    nfe = [sampler(starting_noise(7, i, 1, denoiser.files.shape), [i]).nfe[0] for i in range(9)]
    assert sum(nfe) == calls
    assert len(set(nfe)) > 1


def test_the_record_counts_calls_and_right_answers_of_all_images(flow: Path, judge: Path, tmp_path: Path) -> None:
    """Also of those that an earlier, smaller evaluation computed; both equal what is counted by hand."""
    subject = Subject(str(flow), conditions=Conditions(labels="balanced"), judge=str(judge))
    (small,) = evaluate(subject, [LOOSE], 500, 3, tmp_path, HERE)
    (grown,) = evaluate(subject, [LOOSE], 750, 3, tmp_path, HERE)
    (anew,) = evaluate(subject, [LOOSE], 750, 3, tmp_path / "anew", HERE)
    assert (grown.value, grown.metrics) == (anew.value, anew.metrics)
    assert grown.key == anew.key != small.key
    assert grown.denoiser_calls < anew.denoiser_calls == round(750 * anew.metrics["nfe"])
    assert anew.nfe == round(anew.metrics["nfe"])

    worker = Worker(WorkerSettings(str(flow), conditions=subject.conditions), features=False)
    images = worker.sample(LOOSE.to_json(), 3, 0, 750)
    assert worker.calls == anew.denoiser_calls
    right = (load_judge(str(judge)).labels(images) == torch.arange(750) % 10).double().mean()
    assert abs(anew.metrics["accuracy"] - float(right)) < 3 / 750
    assert anew.metrics["accuracy_low"] < anew.metrics["accuracy"] < anew.metrics["accuracy_high"]

    (unjudged,) = evaluate(Subject(str(flow), conditions=subject.conditions), [LOOSE], 750, 3, tmp_path, HERE)
    assert unjudged.value == pytest.approx(anew.value)
    assert set(unjudged.metrics) == {"nfe"}


def test_fixed_steps_of_torchdiffeq_are_our_schedules(flow: Path, tmp_path: Path) -> None:
    """Through the whole pipeline: Euler on equal steps, as a solver and as a schedule that starts a little later."""
    files = find_model(str(flow))
    schedule = preset_on_grid("euler/uniform-t-zero", files.noise, 4)
    first, second = evaluate(Subject(str(flow)), [OdeSettings("euler", 4), schedule], 750, 0, tmp_path, HERE)
    assert first.nfe == second.nfe == 4
    assert first.value == pytest.approx(second.value, rel=0.02)
    assert first.key != second.key


def test_a_judge_needs_labels(flow: Path, judge: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs labels"):
        evaluate(Subject(str(flow), judge=str(judge)), [LOOSE], 250, 0, tmp_path, HERE)


def test_evaluate_takes_a_solver(run: Run, flow: Path, judge: Path) -> None:
    here = ("evaluate", "--model", flow, "--images", "250", "--labels", "balanced", "--json")
    answer = run(*here, "--ode", "dopri5", "--rtol", "0.03", "--atol", "0.03", "--guidance", "2", "--judge", judge)
    assert answer.code == 0, answer.err
    assert answer.json["nfe"] * 250 == pytest.approx(answer.json["denoiser_calls"])
    assert 0 <= answer.json["accuracy"] <= 1
    assert run(*here, "--ode", "heun@4").json["nfe"] == 4
    for wrong in ((), ("--ode", "heun@4", "--schedule", "ddim@4"), ("--ode", "heun@3")):
        refused = run(*here, *wrong)
        assert refused.code == 2
        assert refused.err.startswith("error: ")


def test_peers_are_every_shape_of_each_solver(flow: Path) -> None:
    settings = FlowTableSettings(model=str(flow), nfes=(3, 4), presets=("dpmpp-2m",), grids=("uniform-t-zero",))
    table = peers(settings, find_model(str(flow)))
    texts = {at: [entry.text for entry in group] for at, group in table.items()}
    stock = "FlowMatchEulerDiscreteScheduler"
    assert texts["euler", 3] == ["torchdiffeq euler", stock, "ddim/uniform-t-zero"]
    assert texts["heun", 3] == ["heun-flow/uniform-t-zero"]
    assert texts["heun", 4] == ["torchdiffeq heun"]
    assert texts["preset", 4] == ["dpmpp-2m/uniform-t-zero"]
    assert all(entry.sampler.nfe == nfe for (_, nfe), group in table.items() for entry in group)


def test_flow_table_screens_reports_resumes_and_publishes(run: Run, flow: Path, judge: Path, tmp_path: Path) -> None:
    files = find_model(str(flow))
    found = preset_on_grid("dpmpp-2m/karras-zero", files.noise, 4)
    (tmp_path / "found.json").write_text(found.model_copy(update={"name": "mine"}).to_json())
    (tmp_path / "guided.json").write_text(found.model_copy(update={"name": "ours", "guidance": 1.2}).to_json())
    (tmp_path / "flow.md").write_text("a\n<!-- flow:begin -->\nold\n<!-- flow:end -->\nz\n")
    here = ("flow-table", "--model", flow, "--out", "flow", "--nfe", "3,4", "--guidances", "1,1.5", "--judge", judge)
    here += ("--presets", "dpmpp-2m,unipc-2-bh2", "--grids", "uniform-t-zero,karras-zero", "--tolerance", "0.03")
    here += ("--screen-images", "200", "--report-images", "750", "--executor", "in-process")
    here += ("--found", "found.json", "--found-conditional", "guided.json")
    first = run(*here, "--csv", "t.csv", "--plot", "p.png", "--markdown", "flow.md")
    assert first.code == 0, first.err

    rows = _table(tmp_path / "t.csv")
    for setting in ("unconditional", "conditional"):
        own = [r for r in rows if r["setting"] == setting]
        assert [r["method"] for r in own if r["method"] in ("dopri5", "euler", "heun", "fewstep")] == [
            "dopri5", "euler", "heun", "euler", "heun", "fewstep"
        ]  # fmt: skip
        presets = [r for r in own if r["method"] in ("dpmpp-2m", "unipc-2-bh2")]
        assert [r["nfe"] for r in presets] == ["3", "4"]
        assert len({r["guidance"] for r in own}) == 1 or setting == "conditional"
        assert all(float(r["low"]) < float(r["value"]) < float(r["high"]) for r in own)
        assert all(float(r["nfe"]) * 750 == pytest.approx(int(r["denoiser_calls"]), abs=1) for r in own)
        assert all(bool(r["accuracy"]) == (setting == "conditional") for r in own)
    assert [r["guidance"] for r in rows if r["method"] == "fewstep"] == ["", "1.2"]
    assert (tmp_path / "p_conditional.png").stat().st_size > 1000
    assert (tmp_path / "p_unconditional.png").stat().st_size > 1000
    text = (tmp_path / "flow.md").read_text()
    assert "old" not in text
    assert text.count("| best preset |") == 2

    # What was chosen is what the screen liked best, on noise that the report never sees.
    screen = _table(tmp_path / "t_screen.csv")
    scales = {r["guidance"]: float(r["value"]) for r in screen if r["method"] == "dopri5"}
    chosen = next(r["guidance"] for r in rows if r["method"] == "dopri5" and r["setting"] == "conditional")
    assert chosen == min(scales, key=lambda scale: scales[scale])
    assert {r["images"] for r in screen} == {"50", "200"}
    assert {(r.rung, r.seed) for r in Store(tmp_path / "flow").evaluations.records()} == {
        ("look", 0), ("screen", 0), ("report", 1_000_003)
    }  # fmt: skip

    # What is known, without computing: all of it now, the screen alone for another number of report images.
    known = run(*here, "--partial", "--json")
    assert [f"{row['value']:.6g}" for row in known.json["rows"]] == [r["value"] for r in rows]
    (tmp_path / "other.md").write_text("<!-- flow:begin -->\n<!-- flow:end -->\n")
    none = run(*here, "--partial", "--report-images", "800", "--json", "--markdown", "other.md", "--plot", "other.png")
    assert none.code == 0, none.err
    assert none.json["rows"] == []

    orders = len(Store(tmp_path / "flow").evaluations.records())
    again = run(*here, "--json")
    assert again.code == 0, again.err
    assert len(Store(tmp_path / "flow").evaluations.records()) == orders
    assert [f"{row['value']:.6g}" for row in again.json["rows"]] == [r["value"] for r in rows]


def test_guidance_table_counts_labels_at_each_scale(run: Run, flow: Path, judge: Path, tmp_path: Path) -> None:
    (tmp_path / "g.md").write_text("<!-- guidance:begin -->\n<!-- guidance:end -->\n")
    here = ("guidance-table", "--model", flow, "--judge", judge, "--scales", "0,1,2", "--images", "250", "--out", "g")
    here += ("--samplers", "heun@2,mine=dpmpp-2m/karras-zero@3", "--executor", "in-process")
    answer = run(*here, "--csv", "g.csv", "--markdown", "g.md")
    assert answer.code == 0, answer.err
    rows = _table(tmp_path / "g.csv")
    assert [(r["method"], r["guidance"]) for r in rows] == [(m, g) for m in ("heun@2", "mine") for g in "012"]
    assert len({r["value"] for r in rows if r["method"] == "mine"}) == 3
    assert "| 2 |" in (tmp_path / "g.md").read_text()
    # Scale 0 asks for nothing: the samples are those without labels.
    plain = run("evaluate", "--model", flow, "--ode", "heun@2", "--images", "250", "--json").json
    assert float(rows[0]["value"]) == pytest.approx(plain["value"], rel=1e-5)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--presets", "nobody"), "unknown preset 'nobody'"),
        (("--guidances", "1,x"), "separated by commas"),
        (("--labels", "none"), "needs labels"),
        (("--settings", "both"), "unconditional"),
    ],
)
def test_wrong_options_are_refused(run: Run, flow: Path, option: tuple[str, str], words: str) -> None:
    refused = run("flow-table", "--model", flow, "--out", "flow", *option)
    assert refused.code == 2
    assert words in refused.err
