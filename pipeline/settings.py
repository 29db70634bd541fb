"""What a search is asked to do: one frozen, checked record."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fewstep.errors import ConfigurationError
from fewstep.pipeline.measured_settings import (
    FRECHET,
    METRICS_TEXT,
    MOST_IMAGES,
    REPORT_SEED_OFFSET,
    TEACHER,
    Metrics,
    ModelSettings,
    checked_metric,
)
from fewstep.pipeline.rules import AUTO, NO_GUARD, POPULATIONS, RULES, has_a_part
from fewstep.search_spaces.checked import Seed
from fewstep.search_spaces.kinds import SPACES
from fewstep.search_spaces.schedule.solver_space import EXTRA_DECISIONS
from fewstep.storage.names import wrong_name
from fewstep.tasks.sampling.grids import SEARCH_GRIDS

SAMPLERS = ("s3", "evolution", "tpe", "random", "nsgaii", "nsgaiii", "gp", "cmaes")
SCREENS = ("auto", "paired", "distance", "frechet", "none")
LEARNED = ("encoder", "ensemble", "forest", "trees", "gp")
SURROGATES = (*LEARNED, "none")
REFINE_TO = ("network", "pixel", "features", "reference", "moments")
FINALS_SEED_OFFSET = 500_009

# A Frechet distance needs the covariance of at least two.
Images = Annotated[int, Field(ge=2, le=MOST_IMAGES)]
FROM_BUDGET = " [default: by the budget]"


def _checked_study(name: str, info: ValidationInfo) -> str:
    # A study that was stored under a name that is refused today is read all the same.
    if not (info.context or {}).get(STORED) and (wrong := wrong_name(name)):
        raise ValueError(f"{name!r} cannot be a study's name: {wrong}")
    return name


# Under this name the context of a validation says that settings are read from a study.
STORED = "stored"
StudyName = Annotated[str, AfterValidator(_checked_study)]


def _checked_guard(name: str) -> str:
    return name if name in (AUTO, NO_GUARD) else checked_metric(name)


# Optuna's default.
POPULATION = 50
Metric = Annotated[str, AfterValidator(_checked_guard)]


class SearchSettings(ModelSettings):
    """Everything that decides what a search computes. Equal settings and seed give equal proposals."""

    study: StudyName = Field("search", description="the study's name in tables and on the tracking server")
    nfes: tuple[int, ...] = Field((3, 4, 5), description="denoiser calls a schedule may make, as 3-6 or 3,5,8")
    sampler: Literal["s3", "evolution", "tpe", "random", "nsgaii", "nsgaiii", "gp", "cmaes"] = Field(
        "s3", description="what proposes candidates"
    )
    seed: Seed = Field(0, description="seed of the proposals and of the noise that the search sees")
    budget: PositiveInt = Field(500_000, description="denoiser calls of everything before the report")
    teacher: str = Field(TEACHER, description="many-step sampler, as PRESET/GRID@CALLS")
    presets: float = Field(0.15, gt=0, le=0.9, description="most of the budget that presets may take")
    refine: float | None = Field(
        None, ge=0, le=0.9, description="share of the budget that tunes the best [default: 0.45 where it can be tuned]"
    )
    finals: float = Field(0.1, gt=0, le=0.5, description="share of the budget that is kept for the finals")
    screen: Literal["auto", "paired", "distance", "frechet", "none"] = Field(
        "auto",
        description="what candidates are screened by. paired: the Frechet distance, guessed from what they change on "
        "few images; distance: to the teacher; frechet: of few images; none: nothing; auto: paired where the budget "
        "allows it, or else whichever of the other two orders the presets better",
    )
    paired_images: NonNegativeInt = Field(
        32, le=MOST_IMAGES, description="images of a paired screen, and of a preset's first look; 0: neither is paired"
    )
    preset_images: PositiveInt = Field(
        64, le=MOST_IMAGES, description="images of a preset's first look that is not paired"
    )
    distance_images: int = Field(128, ge=1, le=MOST_IMAGES, description="images of a screen by distance")
    look_images: int | None = Field(
        None, ge=4, le=MOST_IMAGES, description="images of a screen by Frechet distance" + FROM_BUDGET
    )
    frechet_images: Images | None = Field(
        None, description="images that what passes the screen is judged on" + FROM_BUDGET
    )
    finalist_images: Images | None = Field(None, description="images of the finals [default: what is left pays]")
    finalists: PositiveInt = Field(3, description="schedules of each NFE in the finals")
    keep: float | None = Field(
        None, gt=0, le=1, description="share of candidates that the screen lets through" + FROM_BUDGET
    )
    grids: tuple[str, ...] = Field(SEARCH_GRIDS, description="grids that presets start on")
    report_images: Images | None = Field(None, description="images of each row of the final table" + FROM_BUDGET)
    report_presets: bool = Field(
        True, description="whether the report judges presets and the model's own scheduler beside what was found"
    )
    decisions: tuple[str, ...] = Field((), description=f"searched besides the usual: {', '.join(EXTRA_DECISIONS)}")
    guidance_range: tuple[float, float] | None = Field(None, description="lowest and highest searched guidance")
    warm_start: tuple[str, ...] = Field(
        (), description="schedules that the search starts from: a file, or a finished study's folder"
    )
    refined_elites: PositiveInt = Field(
        3, description="schedules of each NFE that are tuned in turn, or of moments the best is taken of"
    )
    refine_to: Literal["network", "pixel", "features", "reference", "moments"] = Field(
        "moments",
        description="what elites are tuned to. moments: the Frechet distance on the search's own images, without "
        "gradients; network, pixel, features: a distance to the teacher; reference: Frechet's, on new noise",
    )
    patience: NonNegativeInt = Field(
        0, description="calls (images x NFE) after which a front that has not moved ends it; 0: never"
    )
    surrogate: Literal["encoder", "ensemble", "forest", "trees", "gp", "none"] = Field(
        "none", description="what s3 ranks children by"
    )
    random_trials: NonNegativeInt | None = Field(
        None, description="random members of each NFE before any is bred" + FROM_BUDGET
    )
    population: PositiveInt | None = Field(
        None, description="members of a generation of nsgaii and nsgaiii" + FROM_BUDGET
    )
    metric: Metrics = Field(
        (FRECHET,),
        description="what candidates are compared by, but at a screen by distance; others, repeated, are measured of "
        f"the report: {METRICS_TEXT}",
    )
    guard: Metric = Field(
        "auto",
        description="metric that the search does not see, by which the finals must confirm what beats a preset; auto: "
        "a judge's features where the model has one; none",
    )
    space: str = Field(
        "schedule", description="what is searched: schedule, quantization, joint, or a space of another package"
    )
    base_schedule: str = Field(
        "",
        description="schedule that space quantization keeps and joint calibrates with: a file or PRESET/GRID@CALLS",
    )
    calibration_iterations: NonNegativeInt = Field(200, description="most iterations of reconstruction for one unit")
    allot_bits: bool = Field(
        True, description="whether bits by layer are searched, at the same mean, besides even ones"
    )
    front: PositiveInt = Field(12, description="members of the Pareto front that finals and report see")

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, fields: Any, info: ValidationInfo) -> Any:
        # Studies that were stored before presets had a share of the budget name how many of their grids were judged.
        # What they did before there were paired looks, guards, bits by layer and a population.
        if (info.context or {}).get(STORED) and isinstance(fields, dict):
            before: dict[str, Any] = {"paired_images": 0, "guard": NO_GUARD, "allot_bits": False}
            if fields.get("sampler") in POPULATIONS:
                before["population"] = POPULATION
            return before | {name: value for name, value in fields.items() if name != "preset_grids"}
        return fields

    @model_validator(mode="after")
    def _keeps_the_rules(self, info: ValidationInfo) -> Self:
        for rule in RULES:
            rule(self)
        if not (info.context or {}).get(STORED):
            has_a_part(self)
        return self

    @property
    def objective(self) -> str:
        """The metric that candidates are compared by."""
        return self.metric[0]

    @property
    def refinements_each(self) -> int:
        """How many refinements each NFE gets: one an elite, or one of the best elite."""
        return 1 if self.refine_to == "moments" else self.refined_elites

    @field_validator("space")
    @classmethod
    def _space_exists(cls, name: str) -> str:
        parts = name.split("+")
        if len(set(parts)) < len(parts) or ("joint" in parts and len(parts) > 1):
            raise ValueError(f"space {name!r}: name each part once; joint alone is schedule+quantization")
        for part in parts:
            if part != "joint" and (part == "edit" or part not in SPACES.names):
                known = ", ".join([*(n for n in SPACES.names if n != "edit"), "joint"])
                raise ValueError(f"unknown space {part!r}: choose one of {known}, or several joined by +")
        return name

    @property
    def moves_schedule(self) -> bool:
        """Whether schedules are searched, alone or together with something else."""
        return self.space == "joint" or "schedule" in self.space.split("+")

    @property
    def noise_seed(self) -> int:
        """Seed of the images that the search sees."""
        return self.seed

    @property
    def finals_seed(self) -> int:
        """Seed of the images that only the finals see."""
        return self.seed + FINALS_SEED_OFFSET

    @property
    def report_seed(self) -> int:
        """Seed of the images that only the report sees: never a search seed."""
        return self.seed + REPORT_SEED_OFFSET


def parse_nfes(text: str) -> tuple[int, ...]:
    """`3-6`, `3,5,8` or a mixture, as rising numbers; ConfigurationError for anything else."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigurationError(f"NFE {text!r} is not a range: write it as 3-6 or 3,5,8")
        low, high = int(first), int(last) if dash else int(first)
        if not 1 <= low <= high <= 100:
            raise ConfigurationError(f"NFE range {text!r} is not possible: give denoiser calls from 1 to 100, low-high")
        numbers |= set(range(low, high + 1))
    return tuple(sorted(numbers))
