"""Which ranking picks the best children of one elite.

    python -m benchmarks.siblings [--table docs/results/siblings.parquet]

The evaluations were made once (`measure.py`) and lie in the table. Of each elite every ranking orders the same
siblings: `tau` is Kendall's with the distance on images that no ranking saw, `half` the same in the better half, `five`
the mean distance of the five that it takes over the elite's, `best` the best one's of these, `judge` as `five` by the
judge; `against_` stands before differences with the paired screen of 32 images on the same elites (of distances:
ratios). One JSON line a ranking; `ours` is its tau, `theirs` that of this screen. Lines `brood` say `five` of what is
taken from a large brood: ranked at no call, or (`staged`) 40 that are ranked first, screened on 32 images; `theirs` is
of as many as can be screened for all its calls, derivatives included. Means over elites (geometric ones of ratios),
each with its 95% t interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from scipy.stats import kendalltau
from scipy.stats import t as student

from benchmarks._line import emit
from fewstep.pipeline.proposers.surrogate.encoder import Example
from fewstep.pipeline.proposers.surrogate.registry import make_surrogate
from fewstep.search_spaces.schedule.genome import FEATURES

Array = npt.NDArray[np.float64]
Row = Mapping[str, Any]
TABLE = Path("docs/results/siblings.parquet")
LEARNED = ("encoder", "ensemble", "forest", "trees", "gp")
TAKEN, DRAWS, PEER = 5, 400, "paired_32"
SEEDS = 1
# Rankings by the images that they see or measure derivatives on.
RANKINGS = (PEER, "paired_16", "paired_64", "lin_125", "lin_250", "quad_250", "damped_250", "bold_250")
RANKINGS += ("size", "hybrid_16", "hybrid_32")
# What is taken of a large brood, and by what it is held against: as many calls of paired screening.
BROODS = {
    "lin_125": "paired for lin_125",
    "lin_250": "paired for lin_250",
    "quad_250": "paired for lin_250",
    "damped_250": "paired for lin_250",
    "bold_250": "paired for lin_250",
    "staged lin_125": "paired for staged_125",
    "staged lin_250": "paired for staged_250",
    "staged damped_250": "paired for staged_250",
    "staged hybrid_250": "paired for staged_250",
}


@dataclass(frozen=True)
class Family:
    """One elite, its siblings, what was picked of its brood, and the trials of its search."""

    elite: Row
    siblings: Sequence[Row]
    brood: Sequence[Row]
    trials: Sequence[Row]

    def values(self, name: str) -> Array | None:
        """Of every sibling; None where that was not measured of this family."""
        column = [row.get(name) for row in self.siblings]
        return None if any(v is None for v in column) else np.array(column, np.float64)

    @cached_property
    def truth(self) -> Array:
        """On images that no ranking saw."""
        return np.array([row["truth"] for row in self.siblings])

    def learned(self, name: str) -> Array:
        """Scores of a surrogate that was trained on the trials, at screen and main rung as the search adds them."""
        nfe = self.elite["nfe"]
        examples = [Example(_features(t), nfe, _values(t)) for t in self.trials]
        scores = []
        for seed in range(SEEDS):
            surrogate = make_surrogate(name, 2, seed)
            surrogate.fit(examples)
            scores.append(surrogate.predict([_features(row) for row in self.siblings]).sum(1))
        return np.mean(scores, axis=0)

    def figures(self, scores: Array, rows: Sequence[int] | None = None) -> dict[str, float]:
        """What a ranking is worth here, lower scores first; of some siblings alone where `rows` are given."""
        chosen = np.arange(len(self.truth)) if rows is None else np.array(rows)
        scores, truth = scores[chosen], self.truth[chosen]
        better = truth <= np.median(truth)
        five = chosen[np.argsort(scores, kind="stable")[:TAKEN]]
        return {"tau": _tau(scores, truth), "half": _tau(scores[better], truth[better]), **self._taken(five)}

    def _taken(self, rows: Sequence[int] | Array) -> dict[str, float]:
        return self.gained([self.siblings[int(i)] for i in rows])

    def gained(self, rows: Sequence[Row]) -> dict[str, float]:
        """Logs of the distances of what was taken over the elite's."""
        truth, judge = (np.log([r[n] / self.elite[n] for r in rows]) for n in ("truth", "judge"))
        return {"five": float(truth.mean()), "best": float(truth.min()), "judge": float(judge.mean())}

    @property
    def at_random(self) -> dict[str, float]:
        """Of five siblings taken blindly."""
        rng = np.random.default_rng(0)
        draws = [self._taken(rng.choice(len(self.siblings), TAKEN, replace=False)) for _ in range(DRAWS)]
        return {"tau": 0.0, "half": 0.0, **{n: float(np.mean([d[n] for d in draws])) for n in draws[0]}}

    def taken(self, way: str) -> dict[str, float] | None:
        """What a way took of the brood."""
        rows = [row for row in self.brood if way in row["takers"]]
        return self.gained(rows) if rows else None


def _features(row: Row) -> npt.NDArray[np.float32]:
    return np.array(row["features"], np.float32).reshape(-1, FEATURES)


def _values(row: Row) -> tuple[float, float]:
    return tuple(np.nan if row[n] is None else float(row[n]) for n in ("screen", "main"))


def _tau(a: Array, b: Array) -> float:
    value = float(kendalltau(a, b).statistic)
    return value if np.isfinite(value) else 0.0


def families(path: Path) -> list[Family]:
    """All of a table."""
    groups: dict[tuple[str, int, int], list[Row]] = {}
    trials: dict[tuple[str, int], list[Row]] = {}
    for row in pq.read_table(path).to_pylist():
        if row["kind"] == "trial":
            trials.setdefault((row["model"], row["nfe"]), []).append(row)
        else:
            groups.setdefault((row["model"], row["nfe"], row["elite"]), []).append(row)
    found = []
    for (model, nfe, _), rows in groups.items():
        of = {kind: [r for r in rows if r["kind"] == kind] for kind in ("elite", "sibling", "brood")}
        found.append(Family(of["elite"][0], of["sibling"], of["brood"], trials[model, nfe]))
    return found


def lines(known: Sequence[Family]) -> Iterator[tuple[str, list[dict[str, float]], list[dict[str, float]]]]:
    """Name of a ranking, its figures of each family where it was measured, and those of what it is held against."""

    def held(name: str, scores: Sequence[Array | None], told: bool = False) -> Any:
        pairs = [
            (f.figures(s, rows), f.figures(peer, rows))
            for f, s in zip(known, scores, strict=True)
            if s is not None and (peer := f.values(PEER)) is not None
            for rows in [[i for i, r in enumerate(f.siblings) if not r["told"]] if told else None]
        ]
        return name, [a for a, _ in pairs], [b for _, b in pairs]

    for name in RANKINGS:
        yield held(name, [f.values(name) for f in known])
    yield held("lin_250 of those not told", [f.values("lin_250") for f in known], told=True)
    yield held("broyden of those not told", [f.values("broyden") for f in known], told=True)
    for name in LEARNED:
        yield held(name, [f.learned(name) for f in known])
    peers = [f.figures(v) for f in known if (v := f.values(PEER)) is not None]
    yield "random", [f.at_random for f in known], peers
    for way, against in BROODS.items():
        both = [(f.taken(way), f.taken(against)) for f in known]
        yield f"brood: {way}", [a for a, b in both if a and b], [b for a, b in both if a and b]


def summary(figures: Sequence[Mapping[str, float]], prefix: str = "") -> dict[str, float]:
    """Mean of every figure with the ends of its 95% interval, of one elite without; of logs, ratios."""
    found: dict[str, float] = {}
    for name in figures[0]:
        column = np.array([f[name] for f in figures])
        ends = {"": column.mean()}
        if len(column) > 1:
            half = student.ppf(0.975, len(column) - 1) * column.std(ddof=1) / np.sqrt(len(column))
            ends |= {"_low": column.mean() - half, "_high": column.mean() + half}
        plain = name in ("tau", "half")
        found |= {f"{prefix}{name}{end}": float(v if plain else np.exp(v)) for end, v in ends.items()}
    return found


def main() -> None:
    """One line a ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--nfe", nargs="+", type=int, help="of these alone")
    a = parser.parse_args()
    torch.set_num_threads(1)
    known = [f for f in families(a.table) if not a.nfe or f.elite["nfe"] in a.nfe]
    asked = {
        "models": sorted({f.elite["model"] for f in known}),
        "nfe": sorted({f.elite["nfe"] for f in known}),
        "siblings": sum(len(f.siblings) for f in known),
    }
    for name, ours, theirs in lines(known):
        if not ours:
            continue
        difference = [{n: a[n] - b[n] for n in a} for a, b in zip(ours, theirs, strict=True)]
        told, peer = summary(ours), summary(theirs)
        unit = "tau" if "tau" in told else "five"
        conditions = {"of": "siblings" if unit == "tau" else "brood", "elites": len(ours), **told}
        conditions |= {**summary(theirs, "peer_"), **summary(difference, "against_"), **asked}
        emit(f"siblings/{name}", "paired screen of 32 images", unit, told[unit], peer[unit], conditions)


if __name__ == "__main__":
    main()
