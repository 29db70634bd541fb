"""How well each surrogate ranks schedules that it has not seen, on the records of finished searches.

    python -m benchmarks.surrogates [STUDY ...]

Each study is run through once more without sampling: at every number of trials where its search would refit, each
surrogate learns from all trials before and ranks those that come until the next. `ours` is the mean of Kendall's tau
at the screen over fits and studies, `theirs` that of the sequence encoder; `judge` is the tau at the judging rung,
`seconds` what a fit takes. One line a surrogate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._line import emit
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.proposers.options import S3Options, milestone
from fewstep.pipeline.proposers.surrogate.encoder import Example
from fewstep.pipeline.proposers.surrogate.registry import make_surrogate
from fewstep.pipeline.settings import LEARNED, SearchSettings
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import candidate_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.genome import encode, to_genome


def examples_of(study: Study) -> list[tuple[int, Example]]:
    """The trials of a search, by number, that a surrogate learned from, with their values at screen and judge."""
    ladder = study.problem.ladder
    names = tuple(dict.fromkeys((ladder.screen.name, ladder.main.name)))
    values: dict[int, dict[str, float]] = {}
    schedules: dict[int, SolverSchedule] = {}
    for record in study.store.evaluations.records({"study": study.settings.study}):
        schedule = candidate_of(record).schedule
        if record.rung in names and record.value is not None and schedule.corrections is None:
            schedules[record.trial] = schedule
            values.setdefault(record.trial, {})[record.rung] = record.value
    found = []
    for trial in sorted(schedules):
        genome = to_genome(schedules[trial])
        known = tuple(values[trial].get(name, float("nan")) for name in names)
        found.append((trial, Example(encode(genome), genome.nfe, known)))
    return found


def taus(trials: list[tuple[int, Example]], name: str, seed: int) -> list[tuple[float, float, float]]:
    """Of every fit: tau at the screen and at the judge on what came next (NaN: no pairs), and the fit's seconds."""
    rungs = len(trials[0][1].values)
    steps = sorted({milestone(n, S3Options()) for n, _ in trials} - {0})
    found = []
    for at, until in zip(steps, [*steps[1:], trials[-1][0] + 1], strict=True):
        surrogate = make_surrogate(name, rungs, seed)
        begun = time.perf_counter()
        surrogate.fit([e for n, e in trials if n < at])
        seconds = time.perf_counter() - begun
        if surrogate.ready:
            fresh = [e for n, e in trials if at <= n < until]
            both = [surrogate.tau(fresh, f) for f in (0, rungs - 1)]
            found.append((*(np.nan if t is None else t for t in both), seconds))
    return found


def _search(root: Path) -> Path:
    """A search of the digits model, where no study is given."""
    settings = SearchSettings.build(model="digits-ddpm", nfes=(3, 4, 5), budget=300_000, screen="frechet")
    Study(root, settings).find(ExecutionSettings(executor="in-process"))
    return root


def main() -> None:
    """One line a surrogate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        roots = arguments.studies or [_search(Path(folder) / "search")]
        studies = [examples_of(Study.load(root)) for root in roots]
    for root, trials in zip(roots, studies, strict=True):
        if not any(milestone(n, S3Options()) for n, _ in trials):
            parser.error(
                f"{root} has {len(trials)} trials to learn from, none of them after a refit: give a longer search"
            )
    means: dict[str, tuple[float, float, float]] = {}
    for name in LEARNED:
        rows = np.array([row for s in studies for seed in range(arguments.seeds) for row in taus(s, name, seed)])
        if not len(rows):
            parser.error(f"no study has enough values for {name} to be fitted: give a longer search")
        means[name] = tuple(float(v) for v in np.nanmean(rows, axis=0))
        conditions = {
            "studies": [root.name for root in roots],
            "trials": sum(map(len, studies)),
            "seeds": arguments.seeds,
            "fits": len(rows),
            "judge": means[name][1],
            "seconds": means[name][2],
        }
        emit(f"surrogates/{name}", "sequence encoder", "Kendall tau", means[name][0], means["encoder"][0], conditions)


if __name__ == "__main__":
    main()
