"""What searches of schedules share with those of networks: a model, its noise, its ladder, and what fits it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.pipeline.settings import AUTO, NO_GUARD, SearchSettings
from fewstep.pipeline.sizes import check_budget, first_look, sized
from fewstep.pipeline.trial import Ladder, Rung
from fewstep.search_spaces.point import Point, schedule_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.solver_space import Extras
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.tasks.measured_settings import FRECHET
from fewstep.tasks.metrics.metric import FeatureMetric, metric_class
from fewstep.tasks.metrics.spaces.judged import own_judge
from fewstep.tasks.metrics.spaces.own import own_classifier
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import parse_schedule
from fewstep.tasks.work import Subject

# The controlled metric of a Frechet distance.
PAIRED = "paired"
JUDGE = "judge"
# Of the budget, for the teacher's samples by which screens are compared.
MOST_FOR_TEACHER = 0.03


def ladder(settings: SearchSettings, guard: str = "") -> Ladder:
    """Screen, main rung, finals and report, of sized settings. The first two share their noise.

    The last two are measured by the guard too, where there is one.

    Without a screen, the main rung stands in its place. Where the screen is chosen by what it does, it is a small
    Frechet distance until then.
    """
    s = settings
    assert s.look_images
    assert s.frechet_images
    assert s.report_images
    also = (guard,) if guard else ()
    main = Rung("frechet", s.objective, s.frechet_images, s.noise_seed)
    screens = {
        "paired": Rung("screen", paired(s.objective), s.paired_images, s.noise_seed),
        "distance": Rung("distance", "distance", s.distance_images, s.noise_seed),
        "frechet": Rung("look", s.objective, s.look_images, s.noise_seed),
        "auto": Rung("screen", s.objective, s.look_images, s.noise_seed),
        "none": main,
    }
    return Ladder(
        screens[s.screen],
        main,
        Rung("finals", s.objective, s.finalist_images or s.frechet_images, s.finals_seed, also=also),
        Rung("report", s.objective, s.report_images, s.report_seed, also=also),
    )


def paired(objective: str) -> str:
    """The metric that guesses a Frechet distance."""
    return PAIRED + objective.removeprefix(FRECHET)


def _has_features(metric: str) -> bool:
    """Whether a metric measures in the subject's own features."""
    return metric == FRECHET or (":" not in metric and issubclass(metric_class(metric), FeatureMetric))


class ModelProblem:
    """What searches of schedules share with those of networks: a model, its noise, and whether a schedule fits it."""

    def __init__(self, settings: SearchSettings) -> None:
        self.asked, self.settings = settings, sized(settings)
        settings = self.settings
        self.files: ModelFiles = settings.files
        self.teacher: SolverSchedule = parse_schedule(settings.teacher, self.files.noise)
        if settings.screen == "auto" and settings.preset_images * self.teacher.nfe > MOST_FOR_TEACHER * settings.budget:
            # Its samples alone would cost more than a better screen gains.
            self.settings = settings = settings.model_copy(update={"screen": "frechet"})
        if settings.screen == "auto" and not _has_features(settings.objective):
            # A distance to the teacher needs features, and what is minimised brings its own or none.
            self.settings = settings = settings.model_copy(update={"screen": "frechet"})
        settings.conditions.check(self.files)
        warm = [schedule.nfe for schedule in self.warm]
        if warm and not set(warm) & set(settings.nfes):
            raise ConfigurationError(
                f"the schedules to start from have NFE {sorted(set(warm))}, the search NFE {list(settings.nfes)}: "
                "give one of the same number of calls"
            )

    @cached_property
    def subject(self) -> Subject:
        """What is evaluated."""
        s = self.settings
        return Subject(s.model, s.features, s.reference, s.conditions, s.statistics, s.quantized, loading=s.loading)

    @cached_property
    def ladder(self) -> Ladder:
        """See `ladder`."""
        return ladder(self.settings, self.guard)

    @cached_property
    def guard(self) -> str:
        """The metric by which the finals confirm, empty for none; of `auto` a judge's that knows the model's data."""
        s = self.settings
        if s.guard != AUTO:
            return "" if s.guard == NO_GUARD else s.guard
        own = s.space == "schedule" and s.finalists > 1 and s.objective == FRECHET and s.features == AUTO
        return f"{FRECHET}:{JUDGE}" if own and own_classifier(self.files).is_dir() and own_judge(self.files) else ""

    @cached_property
    def warm(self) -> list[SolverSchedule]:
        """Schedules to start from."""
        return [SolverSchedule.from_json(text) for text in self.settings.warm_start]

    @cached_property
    def statistics(self) -> ModelStatistics | None:
        """The model's statistics, where they are given."""
        given = self.settings.statistics
        return ModelStatistics.load_for(Path(given), self.files) if given else None

    @cached_property
    def schedules(self) -> ScheduleSpace:
        """The space of schedules; ConfigurationError where the model cannot offer a decision."""
        s, known = self.settings, self.statistics
        for decision, has in (
            ("mean-x0", known is not None and known.mean is not None),
            ("ems", known is not None and known.empirical is not None),
        ):
            if decision in s.decisions and not has:
                raise ConfigurationError(
                    f"decision {decision!r} needs statistics of the model: make them with `fewstep statistics` and "
                    "give the file as --statistics"
                )
        if s.guidance_range and not (self.files.text or s.conditions.labels != "none"):
            raise ConfigurationError(
                "a range of guidance needs conditions: give --labels balanced, a label, or --prompts FILE"
            )
        extras = Extras(frozenset(s.decisions), self.files.skips, s.guidance_range)
        noise = self.files.noise
        return ScheduleSpace(noise.lambda_start, noise.lambda_end, s.nfes, extras)

    def check(self, point: Point) -> None:
        """ScheduleError where a point's schedule does not compile for this model."""
        schedule = schedule_of(point)
        if schedule is not None:
            compile_schedule(schedule, self.files.noise, self.files.prediction_type, self.statistics)

    def named(self, nfe: int) -> Mapping[str, str]:
        """Hashes of the points that a search takes by name at an NFE, by their origin."""
        return {}

    @property
    def prepaid(self) -> int:
        """Denoiser calls of the teacher, which are part of the budget."""
        s = self.settings
        images = {"distance": s.distance_images, "auto": first_look(s)}.get(s.screen, 0)
        return self.teacher.nfe * images

    def check_budget(self) -> None:
        """ConfigurationError where the budget is too small for a search; a study that has begun is not asked."""
        check_budget(self.asked, self.prepaid)

    @property
    def seeds(self) -> dict[str, int]:
        """Seeds by name, for the header of a table."""
        s = self.settings
        return {"search": s.noise_seed, "finals": s.finals_seed, "report": s.report_seed}
