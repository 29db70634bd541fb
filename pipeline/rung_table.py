"""How well each cheap rung orders schedules as the report does: Kendall's tau of its values with the report's.

The schedules are some that a finished search has judged, evenly chosen by rank: what a rung has to tell apart.
Everything is evaluated on the noise of the search but the last rung, the report, which has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from fewstep.errors import ConfigurationError
from fewstep.pipeline.campaign import Subject, evaluate_missing
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.study import Study
from fewstep.search_spaces.ode import Sampler
from fewstep.search_spaces.schedule import SolverSchedule

Array = npt.NDArray[np.float64]
STUDY = "rungs"
FEWEST = 6
RESAMPLES = 2000


@dataclass(frozen=True)
class RungRow:
    """One rung at one NFE: tau with its 95% bootstrap interval over the candidates, and among their better half.

    `calls` are those of one evaluation at the rung, `chosen` the report's rank of the candidate that the rung likes
    best, 1 being the best of them.
    """

    model: str
    nfe: int
    rung: str
    images: int
    calls: int
    candidates: int
    tau: float
    low: float
    high: float
    tau_better_half: float
    chosen: int


def candidates(study: Study, nfe: int, count: int) -> list[SolverSchedule]:
    """`count` schedules of a search at an NFE, from its best judged to its worst, evenly by rank.

    ConfigurationError where it judged fewer than FEWEST.
    """
    records = study.store.evaluations.records({"study": study.settings.study})
    judged = [(r.value, r.candidate_json) for r in records if r.rung == "frechet" and r.nfe == nfe and r.value]
    ranked = [SolverSchedule.from_json(text) for _, text in sorted(judged)]
    unique = list({s.hash: s for s in reversed(ranked)}.values())[::-1]
    if len(unique) < FEWEST:
        raise ConfigurationError(
            f"{study.root} judged {len(unique)} schedules at NFE {nfe}, fewer than {FEWEST}: search longer, or "
            "choose another --nfe"
        )
    at = np.unique(np.linspace(0, len(unique) - 1, min(count, len(unique))).round().astype(int))
    return [unique[i] for i in at]


def rungs(distance_images: Sequence[int], frechet_images: Sequence[int], seed: int) -> list[Rung]:
    """The rungs that are compared: distances to the teacher, then Frechet distances."""
    distances = [Rung(f"distance-{n}", "distance", n, seed) for n in distance_images]
    return distances + [Rung(f"frechet-{n}", "moments", n, seed) for n in frechet_images]


def rung_table(
    study: Study,
    nfes: Sequence[int],
    count: int,
    distance_images: Sequence[int],
    frechet_images: Sequence[int],
    report_images: int,
    root: Path,
    execution: ExecutionSettings,
    on_record: OnRecord | None = None,
) -> list[RungRow]:
    """Rows of all NFEs; what was computed before is read back from `root`."""
    s = study.settings
    subject = Subject(s.model, s.features, s.reference, s.conditions, s.statistics)
    rows = []
    for nfe in nfes:
        work: list[tuple[Sampler, str]] = [
            (schedule, f"rung-table:{i}") for i, schedule in enumerate(candidates(study, nfe, count))
        ]

        report = Rung("report", "moments", report_images, s.report_seed)
        ladder = [report, *rungs(distance_images, frechet_images, s.noise_seed)]
        found = [
            evaluate_missing(subject, work, rung, root, execution, STUDY, on_record, study.teacher) for rung in ladder
        ]
        last = [r.value for r in found[0]]
        for rung, records in zip(ladder[1:], found[1:], strict=True):
            calls = nfe * rung.images
            if rung.kind == "distance":
                for metric in ("feature_distance", "pixel_distance"):
                    told = [r.metrics.get(metric) for r in records]
                    rows.append(
                        _row(study, nfe, f"{metric.partition('_')[0]} distance", rung.images, calls, told, last)
                    )
            else:
                rows.append(_row(study, nfe, "frechet", rung.images, calls, [r.value for r in records], last))
    return rows


def _row(
    study: Study,
    nfe: int,
    name: str,
    images: int,
    calls: int,
    told: Sequence[float | None],
    last: Sequence[float | None],
) -> RungRow:
    pairs = np.array([(a, b) for a, b in zip(told, last, strict=True) if a is not None and b is not None])
    tau, low, high = tau_interval(pairs[:, 0], pairs[:, 1])
    better = pairs[pairs[:, 1] <= np.median(pairs[:, 1])]
    chosen = int((pairs[:, 1] < pairs[np.argmin(pairs[:, 0]), 1]).sum()) + 1
    half = float(kendalltau(better[:, 0], better[:, 1]).statistic)
    return RungRow(study.files.name, nfe, name, images, calls, len(pairs), tau, low, high, half, chosen)


def tau_interval(a: Array, b: Array, seed: int = 0) -> tuple[float, float, float]:
    """Kendall's tau of two sequences, and its 95% interval by resampling pairs."""
    tau = float(kendalltau(a, b).statistic)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(a), size=len(a)) for _ in range(RESAMPLES))
    taus = np.array([kendalltau(a[rows], b[rows]).statistic for rows in draws])
    low, high = np.nanpercentile(taus, (2.5, 97.5))
    return tau, float(low), float(high)
