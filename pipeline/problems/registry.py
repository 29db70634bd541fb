"""Which problem a study's settings are about."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from fewstep.errors import StorageError
from fewstep.pipeline.problems.base import Problem
from fewstep.pipeline.problems.edits import EditProblem, EditSettings
from fewstep.pipeline.problems.networks import NetworkProblem
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.settings import SearchSettings

Settings = SearchSettings | EditSettings


def problem_of(settings: Settings) -> Problem:
    """The problem; ConfigurationError where the model does not fit it."""
    if isinstance(settings, EditSettings):
        return EditProblem(settings)
    return ScheduleProblem(settings) if settings.space == "schedule" else NetworkProblem(settings)


def read_settings(text: str) -> Settings:
    """Settings as a study stored them; StorageError where they are no search's."""
    try:
        fields: dict[str, Any] = json.loads(text)
        kind = EditSettings if "subject" in fields else SearchSettings
        return kind.model_validate(fields)
    except (ValidationError, ValueError, TypeError) as error:
        raise StorageError(f"no search that this version can read ({' '.join(str(error).split())[:200]})") from None
