"""How well each cheap rung orders schedules as the report does: Kendall's tau of its values with the report's.

The schedules are some that a finished search has judged, evenly chosen by rank: what a rung has to tell apart.
Everything is evaluated on the noise of the search but the last rung, the report, which has its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.stats import kendalltau

from benchmarks.tables.engine import Engine, Picture, Row, Rung, Searched, Sheet, Table
from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import SolverSchedule

Array = npt.NDArray[np.float64]
Counts = tuple[Annotated[int, Field(ge=2)], ...]
FEWEST = 6
RESAMPLES = 2000
NOTES = {
    "interval": "95%, bootstrap over the candidates",
    "chosen": "the report's rank of the candidate that the rung likes best",
}


class Rungs(Table):
    """`search` is the folder of a finished search; no `nfes`: the search's."""

    study: ClassVar[str] = "rungs"

    search: str
    nfes: tuple[int, ...] = ()
    candidates: int = Field(16, ge=FEWEST)
    distance_images: Counts = (64, 128, 256)
    frechet_images: Counts = (250, 1000, 3000)
    report_images: int = Field(5000, ge=2)

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """A row a rung and NFE: tau, among the better half too, and the report's rank of what the rung likes best."""
        search = Searched.load(self.search)
        teacher, seeds, rows = search.study.teacher, search.seeds, list[Row]()
        for nfe in self.nfes or search.nfes:
            work = [(s, f"rung-table:{i}") for i, s in enumerate(candidates(search, nfe, self.candidates))]

            def values(rung: Rung, metric: str = "", work: Sequence[tuple[SolverSchedule, str]] = work) -> list[float]:
                records = engine.records(search.subject, work, rung, teacher)
                found = [r.metrics.get(metric) if metric else r.value for r in records]
                return [np.nan if value is None else value for value in found]

            last = values(Rung("report", "frechet", self.report_images, seeds["report"]))
            for kind, images in [("distance", n) for n in self.distance_images] + [
                ("frechet", n) for n in self.frechet_images
            ]:
                head = {"model": search.study.files.name, "nfe": nfe}
                if kind == "frechet":
                    told = {kind: values(Rung(f"frechet-{images}", "frechet", images, seeds["search"]))}
                else:
                    rung = Rung(f"distance-{images}", "distance", images, seeds["search"])
                    told = {f"{of} distance": values(rung, f"{of}_distance") for of in ("feature", "pixel")}
                for name, found in told.items():
                    rows.append(head | {"rung": name, "images": images, "calls": nfe * images} | agreement(found, last))
            yield Sheet(engine.name, rows, seeds, NOTES | {"report": f"{self.report_images} images"})


def candidates(search: Searched, nfe: int, count: int) -> list[SolverSchedule]:
    """`count` schedules that a search judged, from the best to the worst, evenly by rank; not FEWEST: an error."""
    ranked = search.judged(nfe)
    if len(ranked) < FEWEST:
        raise ConfigurationError(
            f"{search.study.root} judged {len(ranked)} schedules at NFE {nfe}, fewer than {FEWEST}: search longer, or "
            "choose another NFE"
        )
    at = np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))
    return [ranked[i] for i in at]


def agreement(told: Sequence[float], last: Sequence[float]) -> Row:
    """How a rung's values agree with the report's, over the candidates that have both."""
    a, b = np.array([pair for pair in zip(told, last, strict=True) if not np.isnan(pair).any()]).T
    tau, low, high = tau_interval(a, b)
    better = b <= np.median(b)
    half = float(kendalltau(a[better], b[better]).statistic)
    chosen = int((b < b[np.argmin(a)]).sum()) + 1
    return {"candidates": len(a), "tau": tau, "low": low, "high": high, "tau_better_half": half, "chosen": chosen}


def tau_interval(a: Array, b: Array, seed: int = 0) -> tuple[float, float, float]:
    """Kendall's tau of two sequences, and its 95% interval by resampling pairs."""
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(a), size=len(a)) for _ in range(RESAMPLES))
    low, high = np.nanpercentile([kendalltau(a[rows], b[rows]).statistic for rows in draws], (2.5, 97.5))
    return float(kendalltau(a, b).statistic), float(low), float(high)


DIGITS = Rungs(search="runs/demo")
FASHION = Rungs(search="runs/fashion-front", nfes=(5,), distance_images=(64, 256), report_images=4000)
