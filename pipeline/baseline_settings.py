"""What a baseline is asked for. Apart from what runs it, so that its help waits for no library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from fewstep.search_spaces.checked import Seed
from fewstep.search_spaces.schedule.presets import ALIASES, PRESETS, SEARCH_PRESETS
from fewstep.tasks.measured_settings import (
    FRECHET,
    METRICS_TEXT,
    MOST_IMAGES,
    REPORT_SEED_OFFSET,
    Metrics,
    ModelSettings,
)
from fewstep.tasks.sampling import grids
from fewstep.tasks.sampling.grids import GRIDS

if TYPE_CHECKING:
    from fewstep.pipeline.trial import Rung
    from fewstep.tasks.work import Subject

GRIDS_TO_ZERO = tuple(name for name in grids.SEARCH_GRIDS if name.endswith("-zero"))


class BaselineSettings(ModelSettings):
    """Everything that decides what a baseline computes."""

    presets: tuple[str, ...] = Field(SEARCH_PRESETS, description="solvers, comma-separated")
    grids: tuple[str, ...] = Field(GRIDS_TO_ZERO, description="grids, comma-separated")
    nfes: tuple[int, ...] = Field((3, 4, 5, 6, 8, 10), description="denoiser calls, as 3-6 or 3,5,8")
    screen_images: int = Field(2000, ge=2, le=MOST_IMAGES, description="images of every preset on every grid")
    report_images: int = Field(10_000, ge=2, le=MOST_IMAGES, description="images of the best grids and the teacher")
    teacher: str = Field("unipc-2-bh2/karras-zero@100", description="PRESET/GRID@CALLS, or a schedule's file")
    seed: Seed = Field(0, description="seed of the screen's noise")
    metric: Metrics = Field(
        (FRECHET,),
        description=f"what presets are screened by; others, repeated, are measured of the report: {METRICS_TEXT}",
    )

    @field_validator("presets")
    @classmethod
    def _presets_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_names(names, "preset", [*PRESETS, *ALIASES])

    @field_validator("grids")
    @classmethod
    def _grids_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_names(names, "grid", [*GRIDS, *grids.ALIASES])

    @property
    def subject(self) -> Subject:
        """Model, features, reference and conditions."""
        from fewstep.tasks.work import Subject

        return Subject(
            self.model,
            self.features,
            self.reference,
            self.conditions,
            self.statistics,
            self.quantized,
            loading=self.loading,
        )

    @property
    def rungs(self) -> tuple[Rung, Rung]:
        """Screen and report, on different noise."""
        from fewstep.pipeline.trial import Rung

        return (
            Rung("screen", self.metric[0], self.screen_images, self.seed),
            Rung("report", self.metric[0], self.report_images, self.seed + REPORT_SEED_OFFSET),
        )

    @property
    def measured_rungs(self) -> list[Rung]:
        """The report by the other metrics."""
        from fewstep.pipeline.measured import measured_rungs

        return measured_rungs(self.metric[1:], self.rungs[1])

    @property
    def seeds(self) -> dict[str, int]:
        """Seed of each rung by name."""
        return {rung.name: rung.seed for rung in self.rungs}


def known_names(names: tuple[str, ...], kind: str, all_names: Sequence[str]) -> tuple[str, ...]:
    """Each name once; ValueError where one is not among all names, or there is none."""
    unknown = [name for name in names if name not in all_names]
    if unknown or not names:
        raise ValueError(f"unknown {kind} {unknown[0] if unknown else '(none)'!r}: choose from {', '.join(all_names)}")
    return tuple(dict.fromkeys(names))
