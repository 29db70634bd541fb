"""What a search costs: quality on fresh images against the denoiser calls that the search was given.

`fewstep` is a default search, run anew for every budget, so that each point is what such a search ends with by itself.
`evolution` is the published search: each of its `evaluations` schedules judged on `judged` images; its points are what
it would choose after as many calls, by the values that it sees. `presets` is the best stock schedule. All are reported
on images and by judges that chose nothing, over several search seeds.

The ratio of costs is asked of every pair of seeds: the least budget from which on a default search is at least as good
as that evolution's end, over all calls of that evolution. One that is never that good counts as infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import AfterValidator, PositiveInt

from benchmarks.tables.engine import Engine, EvaluationRecord, Picture, Row, Sheet, Table
from benchmarks.tables.front import BASE, INTERVAL, Seeds, columns_of, seeds_of, together
from benchmarks.tables.front import DIGITS as ALL
from benchmarks.tables.peers import OURS, Choice, Contest, Peers, row_of
from fewstep.dashboards.drawings import save_figure
from fewstep.dashboards.lines import ACCENT, LEVEL, MUTED
from fewstep.search_spaces.point import parse_point, schedule_of
from fewstep.search_spaces.schedule import SolverSchedule

EVOLUTION = "evolution"
COLOURS = {OURS: ACCENT, EVOLUTION: MUTED[0], BASE: LEVEL}


def _rising(budgets: tuple[int, ...]) -> tuple[int, ...]:
    if not budgets or list(budgets) != sorted(set(budgets)):
        raise ValueError(f"budgets {budgets}: give rising ones")
    return budgets


class Cost(Table):
    """`budgets` are images, each of NFE denoiser calls; the evolution has `evaluations` on `judged` images each."""

    study: ClassVar[str] = "cost"

    peers: Peers
    searches: Seeds = (0, 1, 2)
    budgets: Annotated[tuple[PositiveInt, ...], AfterValidator(_rising)] = (4000, 8000, 16_000, 32_000, 64_000)
    evaluations: PositiveInt = 400
    judged: PositiveInt = 1000

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """All points, their means, the ratios and the curves, after every search that comes after the first."""
        rows, judges = list[Row](), self.peers.judges
        for seed in self.searches:
            asked = self.peers.model_copy(update={"seed": seed})
            contest = Contest(asked, engine.below(f"seed-{seed}"))
            for nfe in asked.nfes:
                rows += [{"search": seed, **row} for row in self.points(contest, nfe)]
            seeds = seeds_of(rows)
            yield Sheet(f"{engine.name}_searches", rows, seeds)
            if len(seeds) > 1:
                means = together(rows, judges, ("budget",))
                yield Sheet(engine.name, means, seeds, {"interval": INTERVAL})
                yield Sheet(f"{engine.name}_ratio", list(ratios(rows, judges)), seeds, {"interval": "none"})
                yield Picture(engine.name, lambda path, means=means: draw(means, path))

    def points(self, contest: Contest, nfe: int) -> Iterator[Row]:
        """Every method's points at one NFE, reported; `budget` is 0 where a method has none."""
        chosen = [(0, contest.stock(nfe)[0])]
        chosen += self.evolved(contest, nfe)
        for budget in (images * nfe for images in self.budgets):
            found = contest.searched(f"{OURS}-{budget}", nfe, (nfe,), budget=budget)
            chosen.append((budget, Choice(OURS, found.schedule, math.nan, found.calls)))
        for _, choice in chosen:
            contest.engine.tell(f"{choice.method:10} NFE {nfe:<3} {choice.calls:,} calls")
        report = contest.asked.reported_on(contest.asked.report_images)
        known = contest.evaluated([c for _, c in chosen], replace(report, also=contest.asked.judges))
        for budget, choice in chosen:
            yield {"budget": budget} | row_of(choice, known[choice.schedule.hash], contest.asked.judges)

    def evolved(self, contest: Contest, nfe: int) -> list[tuple[int, Choice]]:
        """What the published evolution would choose after as many calls as the budgets are and twice as many, and so
        on, and what it ends with."""
        most = self.evaluations * self.judged * nfe
        found = contest.searched(
            EVOLUTION, nfe, (nfe,), budget=most, sampler="evolution", screen="none", refine=0.0,
            frechet_images=self.judged, finalists=1, finalist_images=self.judged + 1, grids=("uniform-t-zero",),
        )  # fmt: skip
        after = [images * nfe for images in self.budgets]
        while 2 * after[-1] < most:
            after.append(2 * after[-1])
        best = list(incumbents(found.records))
        points = []
        for budget in after:
            within = [schedule for calls, schedule in best if calls <= budget]
            if within and budget < most:
                points.append((budget, Choice(EVOLUTION, within[-1], math.nan, budget)))
        return [*points, (most, Choice(EVOLUTION, found.schedule, math.nan, found.calls))]


def incumbents(records: Sequence[EvaluationRecord]) -> Iterator[tuple[int, SolverSchedule]]:
    """Calls so far and the schedule of the lowest value judged so far, whenever that changes."""
    lowest = math.inf
    for record, calls in zip(records, accumulate(r.denoiser_calls for r in records), strict=True):
        schedule = schedule_of(parse_point(record.candidate_json)) if record.rung == "frechet" else None
        if schedule is not None and record.value is not None and record.value < lowest:
            lowest = record.value
            yield calls, schedule


def ratios(rows: Sequence[Row], judges: Sequence[str]) -> Iterator[Row]:
    """Quartiles over the pairs of seeds, by NFE and metric; `reached` is the share of pairs that are finite."""
    for nfe in dict.fromkeys(row["nfe"] for row in rows):
        here = [row for row in rows if row["nfe"] == nfe]
        ends = [max((r for r in here if r["search"] == seed and r["method"] == EVOLUTION), key=lambda r: r["budget"])
                for seed in dict.fromkeys(r["search"] for r in here)]  # fmt: skip
        searches = [[r for r in here if r["search"] == end["search"] and r["method"] == OURS] for end in ends]
        for name, column in columns_of(here[0], judges).items():
            pairs = [calls_from(own, column, end[column]) / end["calls"] for own in searches for end in ends]
            quartiles = np.quantile(pairs, (0.25, 0.5, 0.75), method="higher")
            yield {
                "model": here[0]["model"], "nfe": nfe, "metric": name,
                **dict(zip(("quarter", "median", "three_quarters"), map(float, quartiles), strict=True)),
                "reached": sum(map(math.isfinite, pairs)) / len(pairs), "pairs": len(pairs),
                "calls_of_evolution": sum(end["calls"] for end in ends) / len(ends),
            }  # fmt: skip


def calls_from(points: Iterable[Row], column: str, goal: float) -> float:
    """Calls of the smallest budget from which on every larger one is no worse than the goal; infinite where none is."""
    found = math.inf
    for row in sorted(points, key=lambda r: r["budget"], reverse=True):
        if row[column] > goal:
            break
        found = row["calls"]
    return found


def draw(means: Sequence[Row], path: Path) -> Path:
    """A row of panels a metric, a panel an NFE: means with their intervals as bands against calls."""
    metrics, nfes = (list(dict.fromkeys(row[name] for row in means)) for name in ("metric", "nfe"))
    figure = Figure(figsize=(3.6 * len(nfes), 3.0 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), len(nfes), squeeze=False, sharex=True)
    for line, metric in zip(panels, metrics, strict=True):
        for axes, nfe in zip(line, nfes, strict=True):
            _panel(axes, [row for row in means if row["metric"] == metric and row["nfe"] == nfe])
            axes.set(xscale="log", yscale="log", title=f"{metric}, NFE {nfe}")
    for axes in panels[-1]:
        axes.set_xlabel("denoiser calls of the search")
    panels[0][0].legend(frameon=False)
    return save_figure(figure, path)


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    lowest = min(row["value"] for row in rows if row["value"] > 0)
    for method, colour in COLOURS.items():
        held = sorted((row for row in rows if row["method"] == method), key=lambda row: row["calls"])
        x, values = [row["calls"] for row in held], [row["value"] for row in held]
        # A logarithmic axis has no place for an interval that reaches 0.
        low, high = [max(row["low"], lowest / 4) for row in held], [row["high"] for row in held]
        if len(held) == 1:
            below = [[values[0] - low[0]], [high[0] - values[0]]]
            axes.errorbar(x, values, yerr=below, fmt="s", color=colour, label=f"best {method.removesuffix('s')}")
            continue
        axes.plot(x, values, marker="o", markersize=3, color=colour, label=method)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


DIGITS = Cost(peers=ALL.peers.model_copy(update={"nfes": (3, 5, 8), "methods": ("presets",)}))
