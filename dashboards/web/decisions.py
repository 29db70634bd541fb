"""Which decisions mattered to what was measured: Optuna's importance of parameters over the candidates of a search.

Of each decision of a step (as `order.2`) the importance is worked out alone, and shown of all steps together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.dashboards.results import JUDGE, REPORT
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Entry
from fewstep.storage.records import MEASURED, EvaluationRecord

LEAST, MOST = 20, 1000
"""Candidates of an NFE below which nothing is said, and the newest of them that are looked at."""

# Of the rungs that compare candidates the dearest that has seen enough of them.
_RUNGS = (JUDGE, "screen", "look", "distance", "presets")
_UNTOLD = ("candidate_json", "metrics", "versions", "error")
_TREES = 64


@dataclass(frozen=True)
class Importance:
    """Shares of the decisions, which sum to 1, of candidates of one NFE by their values at one rung."""

    nfe: int
    rung: str
    metric: str
    candidates: int
    shares: Mapping[str, float]


def importances(columns: Columns, entry: Entry) -> list[Importance]:
    """By NFE, of those that have enough candidates that differ; empty where what was drawn is not stored."""
    rows = columns.frame(entry.store, entry.study, ["rung", "status", "value", "nfe"])
    usable = (rows["status"] == "complete") & np.isfinite(rows["value"].astype(float))
    found = []
    for nfe in sorted(int(n) for n in rows["nfe"].unique()):
        for rung in _RUNGS:
            places = np.flatnonzero((usable & (rows["nfe"] == nfe) & (rows["rung"] == rung)).to_numpy())[-MOST:]
            if len(places) < LEAST:
                continue
            told = _importance(columns.rows(entry.store, entry.study, places.tolist(), _UNTOLD))
            if told is not None:
                found.append(told)
                break
    return found


def _importance(records: Sequence[EvaluationRecord]) -> Importance | None:
    """Of rows of one rung and NFE; None where too few tell what was drawn, or all drew the same."""
    # A candidate that was measured again counts once; what has other parameters is of another space.
    once = {r.candidate: r for r in records if _drawn(r)}
    names = [set(_drawn(r)) for r in once.values()]
    kept = [r for r in once.values() if set(_drawn(r)) == names[-1]] if names else []
    if len(kept) < LEAST or len({r.value for r in kept}) < 2:
        return None
    shares = _shares([_drawn(r) for r in kept], [float(r.value or 0.0) for r in kept])
    first = kept[-1]
    return Importance(first.nfe, first.rung, first.metric, len(kept), shares) if shares else None


def _drawn(record: EvaluationRecord) -> dict[str, Any]:
    """What the sampler drew, as far as Optuna knows such values."""
    known = record.parameters.items()
    if record.rung == REPORT or record.rung.startswith(MEASURED):
        return {}
    return {name: value for name, value in known if isinstance(value, bool | int | float | str) and name != "nfe"}


def _shares(drawn: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """Mean decrease of impurity by decision, all steps of one together, the largest first."""
    import optuna
    from optuna.importance import MeanDecreaseImpurityImportanceEvaluator, get_param_importances

    scales = {name: _scale([row[name] for row in drawn]) for name in drawn[0]}
    varied = {name: scale for name, scale in scales.items() if not scale.single()}
    if not varied:
        return {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params={name: row[name] for name in varied}, distributions=varied, value=value
                )
                for row, value in zip(drawn, values, strict=True)
            ]
        )
        evaluator = MeanDecreaseImpurityImportanceEvaluator(n_trees=_TREES, seed=0)
        single = get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(before)
    shares: dict[str, float] = {}
    for name, share in single.items():
        decision = name.partition(".")[0]
        shares[decision] = shares.get(decision, 0.0) + float(share)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _scale(values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kinds = {type(value) for value in values}
    if kinds == {int}:
        return IntDistribution(min(values), max(values))
    if kinds <= {int, float} and all(np.isfinite(values)):
        return FloatDistribution(float(min(values)), float(max(values)))
    return CategoricalDistribution(sorted(set(values), key=str))
