"""All methods of `peers`, each by several searches: what a method gives, and how much that depends on its seed.

Every seed is a contest of its own (`peers`): presets, peers and searches choose on that seed's noise and are reported
on its report's. A figure is the mean over the searches with the 95% interval of that mean (Student's t), which holds
what images and what searches do to it. `versus` compares a method with `base`, by default the best stock schedule,
search by search: the mean of log ratios, as a ratio. No search sees the judges, so that no guard is on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import mean, stdev
from typing import Annotated, ClassVar

from pydantic import AfterValidator, NonNegativeInt
from scipy import stats

from benchmarks.tables.engine import Engine, Picture, Row, Sheet, Table, figure_name, known_names
from benchmarks.tables.peers import METHODS, Contest, Peers
from fewstep.tasks.refinement.plan import RefinePlan

BASE = "presets"


def _several(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < max(2, len(seeds)):
        raise ValueError(f"searches {seeds}: give two seeds at least, each once")
    return seeds


Seeds = Annotated[tuple[NonNegativeInt, ...], AfterValidator(_several)]


class Front(Table):
    """`searches` are the seeds, `peers` what every one of them does."""

    study: ClassVar[str] = "peers"

    peers: Peers
    searches: Seeds = (0, 1, 2, 3, 4)
    base: Annotated[str, AfterValidator(lambda name: known_names((name,), "method", METHODS)[0])] = BASE

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """The searches one by one, and all of them together as soon as there are two."""
        one = list[Row]()
        for seed in self.searches:
            plan = self.peers.plan.model_copy(update={"seed": seed})
            asked = self.peers.model_copy(update={"seed": seed, "plan": plan})
            contest = Contest(asked, engine.below(f"seed-{seed}"))
            for nfe in self.peers.nfes:
                rows = contest.rows(nfe)
                one += [{"search": seed, **row, "own": contest.own.get((row["method"], nfe), "")} for row in rows]
            seeds = seeds_of(one)
            yield Sheet(f"{engine.name}_searches", one, seeds, NOTES)
            if len(seeds) > 1:
                yield Sheet(
                    engine.name, together(one, self.peers.judges, base=self.base), seeds, NOTES | {"interval": INTERVAL}
                )


NOTES = {
    "calls": "denoiser calls that finding the schedule took, a backward one as two",
    "own": "proposals of a search that are no presets",
}
INTERVAL = "95%, Student's t over the searches"


def together(rows: Sequence[Row], judges: Sequence[str], apart: Sequence[str] = (), base: str = BASE) -> list[Row]:
    """A row for each NFE, method, value of the columns `apart`, and metric, in the order of the first search."""
    grouped, against = defaultdict(list), dict[tuple[int, int], Row]()
    for row in rows:
        grouped[row["nfe"], row["method"], *(row[name] for name in apart)].append(row)
        if row["method"] == base:
            against[row["nfe"], row["search"]] = row
    found = []
    for (nfe, method, *others), held in grouped.items():
        columns = columns_of(held[0], judges)
        for metric, column in columns.items():
            values = [float(row[column]) for row in held]
            ratios = [math.log(max(v, TINY) / max(float(against[nfe, row["search"]][column]), TINY)) for v, row in
                      zip(values, held, strict=True)]  # fmt: skip
            centre, half = _interval(values)
            versus, spread = _interval(ratios)
            found.append(
                {
                    "model": held[0]["model"], "method": method, "nfe": nfe,
                    **dict(zip(apart, others, strict=True)), "metric": metric,
                    "value": centre, "low": centre - half, "high": centre + half,
                    "versus": math.exp(versus), "versus_low": math.exp(versus - spread),
                    "versus_high": math.exp(versus + spread), "searches": len(held), "images": held[0]["images"],
                    "calls": mean(row["calls"] for row in held),
                    "own": mean(row["own"] for row in held) if held[0].get("own", "") != "" else "",
                }
            )  # fmt: skip
    return found


def seeds_of(rows: Sequence[Row]) -> dict[str, int]:
    """The searches that have ended, for a sheet's header."""
    return {f"search {k}": s for k, s in enumerate(sorted({row["search"] for row in rows}))}


def columns_of(row: Row, judges: Sequence[str]) -> dict[str, str]:
    """Columns of figures by what they measure."""
    return {row["metric"]: "value"} | {figure_name(judge): figure_name(judge) for judge in judges}


# A distance may be estimated as nothing or less.
TINY = 1e-3


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its interval."""
    if len(values) < 2:
        return values[0], math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values), half


DIGITS = Front(
    peers=Peers(
        model="digits-ddpm",
        methods=tuple(name for name in METHODS if name != "filters"),
        judges=("frechet:judge", "kid:judge"),
        nfes=(3, 4, 5, 6, 8, 10),
        screen_images=1000,
        report_images=2000,
        plan=RefinePlan(distance="features", iterations=300),
        budget=60_000,
    )
)
# A preconditioned network of the same pictures, whose many-step samples are its best ones.
DIGITS_EDM = Front(peers=DIGITS.peers.model_copy(update={"model": "digits-edm"}))
