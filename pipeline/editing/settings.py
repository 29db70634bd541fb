"""What a search of edits is asked to do. Light: the command line's help reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt

from fewstep.pipeline.settings import StudyName
from fewstep.search_spaces.checked import Checked, Seed
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.editing.subject import EditSubject


def study_name(subject: EditSubject) -> str:
    """What a search of edits of the subject is called where nobody names it."""
    return f"edit-{subject.attribute.replace('/', '-vs-') or 'prompted'}"


STRIP = 11
"""Strengths of the pictures for the dashboard, see `pictures.py`; those of the grid are among them."""


class EditSettings(Checked):
    """A search of edits of one subject.

    `budget` is in denoiser calls of the edits that are screened; boundaries, finals and the report are not counted.
    `steps` are the edit steps (lambdas) to choose among. `schedules` are offered besides the presets as ways;
    decisions in `kept` stay as in `base`. `most_calls` bounds the calls of what is chosen, 0: no bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: Literal["edit"] = "edit"
    study: StudyName
    subject: EditSubject
    steps: tuple[float, ...] = Field(min_length=1)
    base: EditConfig
    schedules: tuple[SolverSchedule, ...] = ()
    kept: tuple[str, ...] = ()
    sampler: Literal["tpe", "nsgaii", "nsgaiii", "random", "gp", "s3", "evolution"] = "tpe"
    surrogate: Literal["encoder", "ensemble", "forest", "trees", "gp", "none"] = "none"
    population: PositiveInt = 20
    seed: Seed = 0
    budget: PositiveInt = 100_000
    screen_images: int = Field(64, ge=2)
    final_images: int = Field(200, ge=2)
    report_images: int = Field(500, ge=2)
    finalists: PositiveInt = 8
    most_calls: NonNegativeInt = 0

    @property
    def model(self) -> str:
        """The subject's model."""
        return self.subject.model
