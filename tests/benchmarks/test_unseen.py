"""Searches on unseen checkpoints: what they have to beat, how images are judged, and the table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.search_spaces.point import as_point
from fewstep.tasks.models.files import ZOO, find_model
from fewstep.tasks.models.judge import JudgeNetwork
from fewstep.tasks.sampling.stock import stock_schedule
from fewstep.tasks.work import GROUP, Subject, WorkerSettings
from fewstep.tasks.worker import Worker

SEED = 5


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    """A bundled model as `benchmarks.unseen.models` leaves one, with a judge of random weights."""
    from benchmarks.unseen.judging import Checkpoint

    folder = tmp_path / "digits"
    shutil.copytree(ZOO / "digits-edm", folder / "model")
    shutil.copytree(ZOO / "digits-edm" / "classifier", folder / "features")
    torch.manual_seed(0)
    JudgeNetwork(1, 8, 10, 4).eval().save(folder / "judge")
    (folder / "reference").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (100, 8, 8), np.uint8)):
        Image.fromarray(image).save(folder / "reference" / f"{i}.png")
    return Checkpoint(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    # Of grids: DDPM's own takes pure noise for a later point, EDM's is Karras'.
    ("model", "plain", "analytic"),
    [("digits-ddpm", 9, 8), ("digits-edm", 8, 8), ("fashion-lfm", 9, 9)],
)
def test_every_stock_schedule_makes_the_calls_that_it_is_compared_at(model: str, plain: int, analytic: int) -> None:
    from benchmarks.unseen.yardstick import stock_schedules

    found = stock_schedules(find_model(model), 5)
    first = {name for name in found if name.startswith("analytic:")}
    assert len(first) == 7 * analytic
    assert len(found) - len(first) == 7 * plain
    assert {schedule.nfe for schedule in found.values()} == {5}
    assert len({schedule.hash for schedule in found.values()}) == len(found)


def test_the_own_scheduler_walked_by_diffusers_makes_the_images_of_its_schedule() -> None:
    from benchmarks.unseen.own import own_schedulers

    worker = Worker(WorkerSettings(Subject("digits-edm"), threads=1))
    (own,) = own_schedulers(worker.files, 4)
    schedule = stock_schedule(worker.files.scheduler_config, 4)
    walked, ours = own.render(worker, SEED, 3, 8), worker.render(as_point(schedule), SEED, 3, 8)
    # diffusers starts from sqrt(sigma_max^2 + 1) deviations, a thousandth more than its schedule does.
    assert torch.allclose(walked, ours, atol=5e-3)


def test_judged_images_are_rendered_once_and_measured_by_both_metrics(checkpoint: Any) -> None:
    from benchmarks.unseen.judging import METRICS, Checkpoint, judged
    from benchmarks.unseen.yardstick import stock_schedules

    schedules = list(stock_schedules(checkpoint.files, 2).values())[:2]
    few = judged(schedules, checkpoint, SEED, GROUP)
    first = judged(schedules, checkpoint, SEED, 3 * GROUP)
    assert checkpoint.worker.calls == 2 * 3 * GROUP * 2
    again = Checkpoint(checkpoint.folder, checkpoint.cache)
    second = judged(schedules, again, SEED, 3 * GROUP)
    assert again.worker.calls == 0
    for metric in METRICS:
        assert checkpoint.interval(first[0], metric) == again.interval(second[0], metric)
        assert few[0][metric][0].mean.tolist() == first[0][metric][0].mean.tolist()
        difference = again.difference(*second, metric)
        distances = [again.distance(groups, metric) for groups in second]
        assert difference.value == pytest.approx(distances[0] - distances[1])
        assert difference.low < difference.value < difference.high


def _lines(ratios: dict[int, float], method: str = "default") -> Iterator[dict[str, Any]]:
    for seed, ratio in ratios.items():
        figures = {
            "found": [4.0 * ratio, 3.0, 5.0],
            "best": "preset:ddim/karras",
            "preset": [4.0, 3.0, 5.0],
            "analytic": [6.0, 5.0, 7.0],
            "ratio": ratio,
            "difference": [1.0, 0.0, 2.0],
            "own": {"a": [9.0, 8.0, 10.0], "b": [8.0, 7.0, 9.0]},
        }
        yield {
            **{"checkpoint": "m", "method": method, "budget": 10, "nfe": 5, "seed": seed, "images": 750},
            **{"study_asked": 10, "study_spent": 9 + seed, "origin": "refined:abc", "report_seed": 1},
            **{"features": figures, "judge": figures, "conditions": {"date": "d", "cpus": 2, "machine": "x"}},
        }


def test_the_table_has_the_median_and_the_range_of_the_seeds() -> None:
    from benchmarks.unseen.__main__ import markdown, rows, sheet

    lines = [*_lines({0: 0.5, 1: 0.2, 2: 0.9}), *_lines({0: 2.0}, "evolution")]
    ours, _, theirs, _ = rows(lines)
    assert (ours["ratio"], ours["low"], ours["high"], ours["seeds"]) == (0.5, 0.2, 0.9, 3)
    assert (ours["best"], ours["own"], ours["to_best_of_5"]) == (4.0, 8.0, 0.5)
    assert ours["spent"] in (0.9, 1.1)
    assert (theirs["method"], theirs["ratio"]) == ("evolution", 2.0)
    assert "0.50 [0.20, 0.90]" in markdown(rows(lines))[2]
    assert "# seeds: report 1" in sheet(lines, "command").splitlines()
