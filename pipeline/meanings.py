"""Whether the names of presets and of the teacher still mean what they did when a study began.

A grid's times may change between versions, and then a study that goes on would compare schedules of two meanings under
one name. Its own schedules do not change: tables hold their lambdas.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from fewstep.errors import ConfigurationError
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.problems.model import ModelProblem
from fewstep.pipeline.stages.presets import PAIRED
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.point import parse_point

DISTANCE = "distance"


def check_names(problem: ModelProblem, evaluator: Evaluator) -> None:
    """ConfigurationError where a study's records are of other times than its names give now."""
    table, study = evaluator.store.evaluations, {"study": evaluator.study}
    rows = table.read(["nfe", "origin", "candidate", "rung", "order"], study).sort_by("order")
    nfes = sorted(set(pc.unique(rows.column("nfe")).to_pylist()) & set(problem.settings.nfes))
    named = {nfe: problem.named(nfe) for nfe in nfes}
    origins = pa.array(sorted({origin for names in named.values() for origin in names}), pa.string())
    for row in rows.filter(pc.is_in(rows.column("origin"), origins)).to_pylist():
        now = named.get(row["nfe"], {}).get(row["origin"])
        if now is not None and now != row["candidate"]:
            raise _changed(evaluator, f"{row['origin']} at NFE {row['nfe']}")
    screened = rows.filter(pc.is_in(rows.column("rung"), pa.array((DISTANCE, PAIRED)))).slice(0, 1).to_pylist()
    if screened:
        (record,) = table.records({**study, "order": screened[0]["order"]})
        rung = Rung(record.rung, DISTANCE, record.images, record.seed)
        if evaluator.key(parse_point(record.candidate_json), rung) != record.key:
            raise _changed(evaluator, f"the teacher {problem.settings.teacher}")


def _changed(evaluator: Evaluator, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{evaluator.store.root} was begun when {what} had other times than in this version: start a study of its own "
        "(--warm-start takes the schedules of a finished one), or go on with the version that began it"
    )
