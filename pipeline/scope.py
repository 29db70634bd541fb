"""What a search may propose for one model: the space, and whether a schedule compiles for the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.quantization_space import QuantizationSpace
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.solver_space import Extras, SolverSpace
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import preset_on_grid

# What a joint search calibrates with where it is not told, at its largest NFE.
CALIBRATION_PRESET = "unipc-2-bh2/karras-zero"


@dataclass(frozen=True)
class Scope:
    """The space of a search on a model's own range, and what its schedules are compiled with.

    Where quantisation is searched, `quantization` is its space and `calibration` the schedule along which all
    networks are calibrated; where only quantisation is, that is also the schedule of every candidate. `teacher_nfe`
    are the calls of the teacher that elites are refined to.
    """

    noise: NoiseSchedule
    space: SolverSpace
    output: str = "epsilon"
    statistics: ModelStatistics | None = None
    quantization: QuantizationSpace | None = None
    calibration: SolverSchedule | None = None
    teacher_nfe: int = 0

    @classmethod
    def of(cls, settings: SearchSettings, files: ModelFiles) -> Scope:
        """The scope that the settings ask for; ConfigurationError where the model cannot offer a decision."""
        statistics = ModelStatistics.load_for(Path(settings.statistics), files) if settings.statistics else None
        for decision, has in (
            ("mean-x0", statistics is not None and statistics.mean is not None),
            ("ems", statistics is not None and statistics.empirical is not None),
        ):
            if decision in settings.decisions and not has:
                raise ConfigurationError(
                    f"decision {decision!r} needs statistics of the model: make them with `fewstep statistics` and "
                    "give the file as --statistics"
                )
        if settings.guidance_range and not (files.text or settings.conditions.labels != "none"):
            raise ConfigurationError(
                "a range of guidance needs conditions: give --labels balanced, a label, or --prompts FILE"
            )
        extras = Extras(frozenset(settings.decisions), files.skips, settings.guidance_range)
        noise = files.noise
        space = SolverSpace(noise.lambda_start, noise.lambda_end, settings.nfes, extras)
        if settings.space == "schedule":
            return cls(noise, space, files.prediction_type, statistics)
        calibration = (
            SolverSchedule.from_json(settings.base_schedule)
            if settings.base_schedule
            else preset_on_grid(CALIBRATION_PRESET, noise, max(settings.nfes))
        )
        configs = QuantizationSpace(calibration.nfe, settings.calibration_iterations)
        scope = cls(noise, space, files.prediction_type, statistics, configs, calibration)
        scope.check(calibration)
        return scope

    def check(self, schedule: SolverSchedule) -> None:
        """ScheduleError where the schedule does not compile for this model."""
        compile_schedule(schedule, self.noise, self.output, self.statistics)
