"""What a search is asked to do: one frozen, checked record."""

from __future__ import annotations

from collections.abc import Callable
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
from fewstep.search_spaces.checked import Seed
from fewstep.search_spaces.kinds import SPACES
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.solver_space import EXTRA_DECISIONS
from fewstep.storage.names import wrong_name
from fewstep.tasks.measured_settings import (
    FRECHET,
    METRICS_TEXT,
    MOST_IMAGES,
    REPORT_SEED_OFFSET,
    TEACHER,
    Metrics,
    ModelSettings,
    checked_metric,
)
from fewstep.tasks.sampling.grids import GRIDS, SEARCH_GRIDS

AUTO, NO_GUARD = "auto", "none"
NO_PORTFOLIO = "none"
POPULATIONS = ("nsgaii", "nsgaiii")
# Settings that have no part in what is searched: in spaces with a change of the network, and in that of schedules.
FOR_SCHEDULES = (
    *("presets", "preset_images", "paired_images", "look_images", "grids", "finalists", "refined_elites", "refine_to"),
    *("random_trials", "portfolio"),
)
QUANTIZED = ("calibration_iterations", "allot_bits")
FOR_NETWORKS = ("front", *QUANTIZED)
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
    portfolio: str = Field(
        NO_PORTFOLIO,
        description="schedules found on other models, looked at beside the presets: a file of "
        "`fewstep schedule collect`, or none",
    )
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
        3,
        description="schedules of each NFE that are tuned in turn, or of moments the best is taken of; together with "
        "networks, members of the front, each on its own",
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
        """How many refinements each NFE gets: one an elite, or one of the best where only schedules are searched."""
        return 1 if self.refine_to == "moments" and self.space == "schedule" else self.refined_elites

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


# Which settings go together: one function a rule, which raises a ValueError that says what to do.


def _consistent(s: SearchSettings) -> None:
    """Numbers, shares and names fit one another."""
    bad = [n for n in s.nfes if not 1 <= n <= 100]
    if bad or not s.nfes:
        raise ValueError(f"NFE {bad[0] if bad else '(none)'} is not possible: give 1 to 100 denoiser calls")
    if len(set(s.nfes)) != len(s.nfes):
        raise ValueError(f"NFE {s.nfes} has duplicates")
    look, judged = s.look_images, s.frechet_images
    if s.screen == "frechet" and look is not None and judged is not None and look >= judged:
        raise ValueError(
            f"look_images {look} must be below frechet_images {judged}: the main rung extends the screen's images"
        )
    shares = s.presets * (s.space == "schedule") + (s.refine or 0) + s.finals
    if shares > 0.9:
        raise ValueError(
            f"presets {s.presets}, refine {s.refine} and finals {s.finals} leave {1 - shares:.2f} of the "
            "budget to search with: together at most 0.9"
        )
    if not s.grids or not set(s.grids) <= set(GRIDS):
        raise ValueError(f"grids {', '.join(s.grids)}: choose from {', '.join(GRIDS)}")
    if s.screen == "paired" and (s.objective.partition(":")[0] != FRECHET or s.paired_images < 2):
        raise ValueError(
            f"a paired screen guesses the Frechet distance from two images at least, not {s.objective} from "
            f"{s.paired_images}: choose another --screen"
        )
    if s.population and s.sampler not in POPULATIONS:
        raise ValueError(f"a population is that of sampler {' or '.join(POPULATIONS)}, not of {s.sampler}")
    unknown = [name for name in s.decisions if name not in EXTRA_DECISIONS]
    if unknown:
        raise ValueError(f"unknown decision {unknown[0]!r}: choose from {', '.join(EXTRA_DECISIONS)}")
    if s.guidance_range and not 0 <= s.guidance_range[0] < s.guidance_range[1]:
        raise ValueError(f"guidance range {s.guidance_range}: give a lower and a higher scale, as 1:8")


def _can_be_tuned(s: SearchSettings) -> None:
    """What tunes the best can tune what is searched."""
    if not s.refine:
        return
    if not s.moves_schedule:
        raise ValueError(f"space {s.space!r} has no schedule to tune: leave --refine away")
    if s.refine_to != "moments" and (s.space != "schedule" or s.quantized):
        raise ValueError(
            f"tuning to {s.refine_to} needs the gradient of the network, and a quantised one has none: "
            "leave --refine-to away, which tunes to moments"
        )
    if s.refine_to in ("moments", "reference") and s.objective != FRECHET:
        raise ValueError(
            f"tuning to {s.refine_to} descends the Frechet distance, and candidates are compared by "
            f"{s.objective}: leave --refine away, or give --refine-to network, pixel or features"
        )


def _can_be_guarded(s: SearchSettings) -> None:
    """A guard is a metric that the search does not see, and that the finals can use."""
    if s.guard in (AUTO, NO_GUARD):
        return
    from fewstep.tasks.metrics.metric import metric_class

    if s.space != "schedule":
        raise ValueError(f"space {s.space!r} has no finals by one metric to guard: leave --guard away")
    if s.guard == s.objective:
        raise ValueError(f"the search sees {s.guard} already: guard it by another metric, or by none")
    if not metric_class(s.guard).grows or metric_class(s.guard).taught:
        raise ValueError(f"{s.guard} does not add up over images as a guard must: give frechet:FEATURES or kid")
    if s.finalists < 2:
        raise ValueError("a guard compares the finals' best with a preset: give at least two --set finalists")


def _can_be_learned(s: SearchSettings) -> None:
    """A surrogate can learn the objective."""
    if s.objective != FRECHET and s.surrogate in ("encoder", "ensemble"):
        from fewstep.tasks.metrics.metric import metric_class

        if metric_class(s.objective).signed:
            raise ValueError(
                f"surrogate {s.surrogate!r} learns logarithms, and {s.objective} may be below 0: choose "
                "forest, trees, gp or none"
            )


def _fits_its_space(s: SearchSettings) -> None:
    """Sampler, screen and network are such as the space can have."""
    if s.space == "schedule":
        if s.base_schedule:
            raise ValueError("a schedule to calibrate with needs a space with quantisation: quantization or joint")
        return
    if s.screen not in ("auto", "distance"):
        raise ValueError(f"space {s.space!r} screens by the distance to the teacher: leave --screen away")
    if s.sampler == "cmaes":
        raise ValueError(f"sampler 'cmaes' has one objective, space {s.space!r} has several: choose another")
    if s.quantized:
        raise ValueError(
            f"space {s.space!r} makes quantised networks of its own: leave --quantized away, or search space "
            "'schedule' for the one that you have"
        )
    if not s.moves_schedule:
        _fits_one_schedule(s)


def _fits_one_schedule(s: SearchSettings) -> None:
    """Configs can be searched for the base schedule as it is."""
    if not s.base_schedule:
        raise ValueError(f"space {s.space!r} needs the schedule that is kept: --schedule PRESET/GRID@CALLS or FILE")
    calls = SolverSchedule.from_json(s.base_schedule).nfe
    if s.nfes != (calls,):
        raise ValueError(f"the schedule has {calls} calls, not {s.nfes}: leave --nfe away, or search space 'joint'")
    changing = {"warm_start": s.warm_start, "decisions": s.decisions, "guidance_range": s.guidance_range}
    for name, given in changing.items():
        if given:
            raise ValueError(f"{name} changes schedules, which space {s.space!r} keeps: search 'joint'")


def has_a_part(s: SearchSettings) -> None:
    """ValueError for a setting that was given and does nothing in this search."""
    if s.surrogate != "none" and s.sampler != "s3":
        raise ValueError(f"a surrogate ranks the children of sampler s3, not of {s.sampler}: leave it away")
    idle = FOR_NETWORKS if s.space == "schedule" else FOR_SCHEDULES
    if s.space not in ("schedule", "joint") and "quantization" not in s.space.split("+"):
        idle = (*idle, *QUANTIZED)
    for name in idle:
        if getattr(s, name) != type(s).model_fields[name].default:
            raise ValueError(f"{name} has no part in a search of space {s.space!r}: leave it away")


RULES: tuple[Callable[[SearchSettings], None], ...] = (
    _consistent,
    _can_be_tuned,
    _can_be_guarded,
    _can_be_learned,
    _fits_its_space,
)


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
