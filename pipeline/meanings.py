"""Whether the names of presets and of the teacher still mean what they did when a study began.

A grid's times may change between versions, and then a study that goes on would compare schedules of two meanings under
one name. Its own schedules do not change: tables hold their lambdas.
"""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.errors import ConfigurationError
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.problems.model import ModelProblem
from fewstep.pipeline.stages.presets import PAIRED
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.point import parse_point
from fewstep.storage.records import EvaluationRecord

DISTANCE = "distance"


def check_names(problem: ModelProblem, evaluator: Evaluator, records: Sequence[EvaluationRecord]) -> None:
    """ConfigurationError where a study's records are of other times than its names give now."""
    named = {nfe: problem.named(nfe) for nfe in sorted({r.nfe for r in records}) if nfe in problem.settings.nfes}
    for record in records:
        now = named.get(record.nfe, {}).get(record.origin)
        if now is not None and now != record.candidate:
            raise _changed(evaluator, f"{record.origin} at NFE {record.nfe}")
    screened = next((r for r in records if r.rung in (DISTANCE, PAIRED)), None)
    if screened is not None:
        rung = Rung(screened.rung, DISTANCE, screened.images, screened.seed)
        if evaluator.key(parse_point(screened.candidate_json), rung) != screened.key:
            raise _changed(evaluator, f"the teacher {problem.settings.teacher}")


def _changed(evaluator: Evaluator, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{evaluator.store.root} was begun when {what} had other times than in this version: start a study of its own "
        "(--warm-start takes the schedules of a finished one), or go on with the version that began it"
    )
