"""ODE solvers through the pipeline, and the judge's accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.errors import ConfigurationError
from fewstep.pipeline.campaign import evaluate
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.search_spaces.ode import OdeSettings
from fewstep.search_spaces.point import OdePoint
from fewstep.tasks.flow.ode import OdeSampler
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.judge import load_judge
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

Run = Callable[..., Any]
HERE = ExecutionSettings(executor="in-process")
LOOSE = OdeSettings(atol=3e-2, rtol=3e-2)


def test_samples_and_calls_of_an_image_depend_on_it_alone(flow: Path) -> None:
    """Whatever the start, the count and the size of batches: up to what float32 does, far below the tolerance."""
    asked = Conditions(labels="balanced", guidance=1.5)
    worker = Worker(WorkerSettings(Subject(str(flow), conditions=asked)))
    whole = worker.render(OdePoint(solver=LOOSE), 7, 0, 9)
    calls = worker.calls
    worker.batch = 4
    parts = [worker.render(OdePoint(solver=LOOSE), 7, start, 3) for start in (0, 3, 6)]
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

    worker = Worker(WorkerSettings(Subject(str(flow), conditions=subject.conditions)))
    images = worker.render(OdePoint(solver=LOOSE), 3, 0, 750)
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
