"""How soon a search is good on a model that it knows nothing of, with the portfolio and with presets alone.

    python -m benchmarks.unseen.cold_start ROOT RESULTS.jsonl [--only NAME ...] [--csv docs/results]

A default search of BUDGET calls at each of NFES is stopped after the largest of SHARES. Its best at each share, by what
the search itself had measured by then, is judged on the noise and by both metrics of the yardstick. One line a
checkpoint, seed, arm, NFE and share; lines that RESULTS.jsonl has are not made again. --csv writes their table.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks._line import machine
from benchmarks.tables.engine import Sheet
from benchmarks.unseen.data import DATA
from benchmarks.unseen.judging import METRICS, Checkpoint, judged
from benchmarks.unseen.yardstick import IMAGES, NFES, REPORT_SEED, yardstick
from fewstep.files import write_text
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.search import Search
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.stages.presets import FIRST
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Trial
from fewstep.search_spaces.point import schedule_of
from fewstep.storage.records import EvaluationRecord

BUDGET, SEEDS = 250_000, (0, 1, 2)
SHARES = (0.02, 0.05, 0.1, 0.2)
ARMS = {"presets": "none", "portfolio": "bundled"}
# Ratios beyond this count as it: nobody would call either an image.
WORST = 20.0


class _EnoughError(Exception):
    """The largest share is spent."""


def searched(checkpoint: Checkpoint, seed: int, arm: str, root: Path) -> tuple[ScheduleProblem, list[EvaluationRecord]]:
    """The problem and the records of a search that was stopped."""
    settings = SearchSettings.build(
        model=checkpoint.model,
        nfes=NFES,
        budget=BUDGET * len(NFES),
        seed=seed,
        features=str(checkpoint.folder / "features"),
        reference=str(checkpoint.folder / "reference"),
        labels=checkpoint.labels,
        portfolio=ARMS[arm],
    )
    study, spent = Study(root / f"{checkpoint.name}-{seed}-{arm}", settings), 0

    def count(record: EvaluationRecord) -> None:
        nonlocal spent
        spent += record.denoiser_calls
        if spent >= SHARES[-1] * settings.budget:
            raise _EnoughError

    with suppress(_EnoughError):
        study.run(ExecutionSettings(executor="in-process"), "benchmark", count)
    assert isinstance(study.problem, ScheduleProblem)
    return study.problem, study.store.evaluations.records({"study": settings.study})


def best(search: Search, nfe: int) -> Trial | None:
    """The best of an NFE as the search knows it: judged, or else as its first look guesses."""

    def known(trial: Trial) -> float:
        value = trial.value(search.ladder.main)
        first = trial.records.get(FIRST)
        guess = None if first is None or first.status != "complete" else first.value
        return next((v for v in (value, guess) if v is not None), math.inf)

    of_nfe = [t for t in search.trials.values() if t.candidate.nfe == nfe and known(t) < math.inf]
    return min(of_nfe, key=known, default=None)


def lines(checkpoint: Checkpoint, seed: int, arm: str, root: Path) -> Iterator[dict[str, Any]]:
    """What one search had after each share."""
    problem, records = searched(checkpoint, seed, arm, root)
    for share in SHARES:
        held, spent = [], 0
        for record in sorted(records, key=lambda r: r.order):
            if spent >= share * problem.settings.budget:
                break
            held.append(record)
            spent += record.denoiser_calls
        search = problem.search().replay(held)
        for nfe in NFES:
            trial, stock = best(search, nfe), yardstick(checkpoint, nfe)
            schedule = None if trial is None else schedule_of(trial.candidate.point)
            line: dict[str, Any] = {"checkpoint": checkpoint.name, "seed": seed, "arm": arm, "nfe": nfe, "share": share}
            line |= {"calls": spent, "origin": "" if trial is None else trial.candidate.origin}
            line |= {"images": IMAGES, "report_seed": REPORT_SEED}
            (groups,) = judged([schedule], checkpoint, REPORT_SEED, IMAGES) if schedule is not None else (None,)
            for metric in METRICS:
                least = stock.interval(stock.best(metric), metric).value
                value = math.inf if groups is None else checkpoint.distance(groups, metric)
                line[metric] = {"value": value, "best": least, "ratio": value / least}
            yield line | {"conditions": machine()}


NOTES = {
    "interval": "95%, t over searches (a checkpoint and a seed each), of each one's mean over the NFEs",
    "log_ratio": "mean logarithm of the distance with the portfolio to that with presets alone: below 0 it helps",
    "presets, portfolio": "geometric mean of the distance to that of the best preset, chosen on these images",
    "share": "of the budget that was spent by then",
}


def rows(made: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table: a share and a metric each."""
    table = []
    for share, metric in product(SHARES, METRICS):
        logs = {arm: defaultdict[tuple[str, int], list[float]](list) for arm in ARMS}
        for line in made:
            if line["share"] == share:
                ratio = min(line[metric]["ratio"], WORST)
                logs[line["arm"]][line["checkpoint"], line["seed"]].append(math.log(ratio))
        searches = sorted(set.intersection(*(set(held) for held in logs.values())))
        means = {arm: np.array([np.mean(held[search]) for search in searches]) for arm, held in logs.items()}
        gained = means["portfolio"] - means["presets"]
        half = float(student.ppf(0.975, len(searches) - 1) * gained.std(ddof=1) / math.sqrt(len(searches)))
        mean = float(gained.mean())
        table.append(
            {
                "share": share,
                "metric": metric,
                "calls": int(share * BUDGET),
                **{arm: math.exp(values.mean()) for arm, values in means.items()},
                "log_ratio": mean,
                "low": mean - half,
                "high": mean + half,
                "searches": len(searches),
                "images": IMAGES,
            }
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the lines that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="the folder of models.py")
    parser.add_argument("results", type=Path, help="file of JSON lines that results are added to")
    parser.add_argument("--only", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--csv", type=Path, help="folder for cold_start.csv")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    made = [json.loads(text) for text in given.results.read_text().splitlines()] if given.results.is_file() else []
    done = {(line["checkpoint"], line["seed"], line["arm"]) for line in made}
    for seed in SEEDS:
        for name in given.only:
            for arm in ARMS:
                if (name, seed, arm) in done:
                    continue
                checkpoint = Checkpoint(given.root / name, given.root / "cache")
                found = list(lines(checkpoint, seed, arm, given.root / "cold"))
                with given.results.open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in found)
                made += found
                told = (f"{x['nfe']}@{x['share']}: {x['features']['ratio']:.2f}" for x in found)
                print(name, seed, arm, *told, flush=True)
    if given.csv:
        dates = ", ".join(sorted({line["conditions"]["date"] for line in made}))
        text = Sheet("cold_start", rows(made), {"report": REPORT_SEED}, {"date": dates} | NOTES)
        print(write_text(given.csv / "cold_start.csv", text.csv("python -m benchmarks.unseen.cold_start")))


if __name__ == "__main__":
    main()
