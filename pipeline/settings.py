"""What a search is asked to do, and where it runs: two frozen, checked records."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.checked import Checked, Seed
from fewstep.search_spaces.kinds import SPACES
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.solver_space import EXTRA_DECISIONS
from fewstep.storage.names import wrong_name
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ModelFiles, files_of
from fewstep.tasks.models.loading import Loading
from fewstep.tasks.refinement.moment_plan import AT_ONCE, MOST_LOOKED_AT, MomentPlan
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.sampling.grids import GRIDS, SEARCH_GRIDS

SAMPLERS = ("s3", "evolution", "tpe", "random", "nsgaii", "nsgaiii", "gp", "cmaes")
SCREENS = ("auto", "paired", "distance", "frechet", "none")
LEARNED, MOMENTS = ("encoder", "ensemble", "forest", "trees", "gp"), "moments"
SURROGATES = (*LEARNED, MOMENTS, "none")
REFINE_TO = ("network", "pixel", "features", "reference", "moments")
REPORT_SEED_OFFSET, FINALS_SEED_OFFSET = 1_000_003, 500_009
LEAST_ITERATIONS, MOST_ITERATIONS = 50, 600
# Few images are soon fitted by heart: a descent on moments sees as many as its calls sample so often, first of these,
# and more where its calls sample them more often.
ENOUGH_TUNED_ON, SAMPLINGS = 2000, 2.5
MOST_TUNED_ON, MORE_SAMPLINGS = 4000, 10
# More images than this nobody waits for.
MOST_IMAGES = 100_000_000

# A Frechet distance needs the covariance of at least two.
Images = Annotated[int, Field(ge=2, le=MOST_IMAGES)]
FROM_BUDGET = " [default: by the budget]"


def _checked_metric(name: str) -> str:
    if name == "frechet":
        return name
    # Here, since it brings torch: settings are read by commands that do not need it.
    from fewstep.tasks.metrics.metric import known_metrics, metric_class

    if not metric_class(name).standalone:
        known = [n for n, metric in known_metrics().items() if metric.standalone]
        raise ConfigurationError(f"metric {name!r} does not stand alone: choose one of {', '.join(known)}")
    return name


def _checked_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("name at least one metric, such as frechet")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"metric {twice!r} is given twice")
    return tuple(map(_checked_metric, names))


def _as_several(value: Any) -> Any:
    # Alone, as a study file may have it, and as studies stored it before there could be several.
    return (value,) if isinstance(value, str) else value


def _checked_study(name: str, info: ValidationInfo) -> str:
    # A study that was stored under a name that is refused today is read all the same.
    if not (info.context or {}).get(STORED) and (wrong := wrong_name(name)):
        raise ValueError(f"{name!r} cannot be a study's name: {wrong}")
    return name


# Under this name the context of a validation says that settings are read from a study.
STORED = "stored"
# Settings that have no part in what is searched: in spaces with a change of the network, and in that of schedules.
FOR_SCHEDULES = (
    *("presets", "preset_images", "paired_images", "look_images", "grids", "finalists", "refined_elites", "refine_to"),
    "random_trials",
)
FOR_NETWORKS = ("front", "calibration_iterations")
StudyName = Annotated[str, AfterValidator(_checked_study)]


def _checked_guard(name: str) -> str:
    return name if name in (AUTO, NO_GUARD) else _checked_metric(name)


AUTO, NO_GUARD = "auto", "none"
# Optuna's default.
POPULATION, POPULATIONS = 50, ("nsgaii", "nsgaiii")
Metric = Annotated[str, AfterValidator(_checked_guard)]
Metrics = Annotated[tuple[str, ...], BeforeValidator(_as_several), AfterValidator(_checked_metrics)]
FRECHET = "frechet"
TEACHER = "unipc-2-bh2/karras-zero@64"
METRICS_TEXT = (
    "frechet, kid, cmmd, precision, recall, clip-score, scorer, perceptual, holes, layouts, or what another package "
    "has; as NAME:FEATURES in other features"
)


class ModelSettings(Checked):
    """What is sampled and measured: a model, what it is asked for, and the features that its images are compared by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="a bundled model's name or a diffusers directory")
    features: str = Field(
        "auto",
        description="what images are compared by: auto, inception, a folder of a classifier or a transformers vision "
        "model, a TorchScript or ONNX file, or MODULE:CALLABLE",
    )
    reference: str = Field(
        "auto",
        description="images they are compared with: auto, a folder, Parquet, tars, LMDB, .npz, a data set",
    )
    conditions: Conditions = Field(default_factory=Conditions, description="labels or prompts, and guidance")
    statistics: str = Field("", description="file made by `fewstep statistics`")
    quantized: str = Field("", description="folder made by `fewstep quantize`, sampled in the model's place")
    loading: Loading = Field(default_factory=Loading, description="number format and the like")

    @model_validator(mode="after")
    def _quantised_in_full_precision(self) -> Self:
        if self.quantized and self.loading.dtype != "float32":
            raise ValueError(f"a quantised network is held in float32: leave --dtype {self.loading.dtype} away")
        return self

    @property
    def files(self) -> ModelFiles:
        """The model's files, a quantised network in its place where there is one."""
        return files_of(self)


class SubjectSettings(ModelSettings):
    """What single schedules are evaluated on, and by what."""

    metric: Metrics = Field((FRECHET,), description=f"what is measured of the images, may be repeated: {METRICS_TEXT}")
    integer: bool = Field(False, description="run the quantised network in 8-bit integers")
    judge: str = Field("", description="classifier that counts images which show their label: a name or a folder")

    @model_validator(mode="after")
    def _has_integers(self) -> Self:
        if self.integer and not self.quantized:
            raise ValueError("--integer runs a quantised network: give its folder as --quantized")
        return self


class MeasuredSettings(SubjectSettings):
    """The same where metrics may compare with a teacher."""

    teacher: str = Field(
        "", description=f"many-step sampler that perceptual compares with, as PRESET/GRID@CALLS [default: {TEACHER}]"
    )

    @model_validator(mode="after")
    def _has_pupils(self) -> Self:
        if self.teacher and not self.is_taught:
            raise ValueError(
                f"no metric of {', '.join(self.metric)} compares with a teacher: leave --teacher away, or measure "
                "perceptual"
            )
        return self

    @property
    def is_taught(self) -> bool:
        """Whether a metric compares with the teacher."""
        return any(taught(name) for name in self.metric)


def taught(name: str) -> bool:
    """Whether a metric compares with the teacher."""
    if name == FRECHET:
        return False
    from fewstep.tasks.metrics.metric import metric_class

    return metric_class(name).taught


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
    surrogate: Literal["encoder", "ensemble", "forest", "trees", "gp", "moments", "none"] = Field(
        "none",
        description="what s3 ranks children by. moments: how feature moments move with the numbers of an elite, "
        "measured once each",
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
    front: PositiveInt = Field(12, description="members of the Pareto front that finals and report see")

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, fields: Any, info: ValidationInfo) -> Any:
        # Studies that were stored before presets had a share of the budget name how many of their grids were judged.
        # What they did before there were paired looks, guards and a population.
        if (info.context or {}).get(STORED) and isinstance(fields, dict):
            before: dict[str, Any] = {"paired_images": 0, "guard": NO_GUARD}
            if fields.get("sampler") in POPULATIONS:
                before["population"] = POPULATION
            return before | {name: value for name, value in fields.items() if name != "preset_grids"}
        return fields

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        bad = [n for n in self.nfes if not 1 <= n <= 100]
        if bad or not self.nfes:
            raise ValueError(f"NFE {bad[0] if bad else '(none)'} is not possible: give 1 to 100 denoiser calls")
        if len(set(self.nfes)) != len(self.nfes):
            raise ValueError(f"NFE {self.nfes} has duplicates")
        look, judged = self.look_images, self.frechet_images
        if self.screen == "frechet" and look is not None and judged is not None and look >= judged:
            raise ValueError(
                f"look_images {look} must be below frechet_images {judged}: the main rung extends the screen's images"
            )
        shares = self.presets * (self.space == "schedule") + (self.refine or 0) + self.finals
        if shares > 0.9:
            raise ValueError(
                f"presets {self.presets}, refine {self.refine} and finals {self.finals} leave {1 - shares:.2f} of the "
                "budget to search with: together at most 0.9"
            )
        if not self.grids or not set(self.grids) <= set(GRIDS):
            raise ValueError(f"grids {', '.join(self.grids)}: choose from {', '.join(GRIDS)}")
        if self.screen == "paired" and (self.objective.partition(":")[0] != FRECHET or self.paired_images < 2):
            raise ValueError(
                f"a paired screen guesses the Frechet distance from two images at least, not {self.objective} from "
                f"{self.paired_images}: choose another --screen"
            )
        if self.population and self.sampler not in POPULATIONS:
            raise ValueError(f"a population is that of sampler {' or '.join(POPULATIONS)}, not of {self.sampler}")
        unknown = [name for name in self.decisions if name not in EXTRA_DECISIONS]
        if unknown:
            raise ValueError(f"unknown decision {unknown[0]!r}: choose from {', '.join(EXTRA_DECISIONS)}")
        if self.guidance_range and not 0 <= self.guidance_range[0] < self.guidance_range[1]:
            raise ValueError(f"guidance range {self.guidance_range}: give a lower and a higher scale, as 1:8")
        return self

    @model_validator(mode="after")
    def _can_refine(self) -> Self:
        if not self.refine:
            return self
        if self.space != "schedule" or self.quantized:
            raise ValueError("only schedules of networks that are not quantised are tuned: leave --refine away")
        if self.refine_to in ("moments", "reference") and self.objective != FRECHET:
            raise ValueError(
                f"tuning to {self.refine_to} descends the Frechet distance, and candidates are compared by "
                f"{self.objective}: leave --refine away, or give --refine-to network, pixel or features"
            )
        return self

    @model_validator(mode="after")
    def _can_be_guarded(self) -> Self:
        if self.guard in (AUTO, NO_GUARD):
            return self
        from fewstep.tasks.metrics.metric import metric_class

        if self.space != "schedule":
            raise ValueError(f"space {self.space!r} has no finals by one metric to guard: leave --guard away")
        if self.guard == self.objective:
            raise ValueError(f"the search sees {self.guard} already: guard it by another metric, or by none")
        if not metric_class(self.guard).grows or metric_class(self.guard).taught:
            raise ValueError(f"{self.guard} does not add up over images as a guard must: give frechet:FEATURES or kid")
        if self.finalists < 2:
            raise ValueError("a guard compares the finals' best with a preset: give at least two --set finalists")
        return self

    @model_validator(mode="after")
    def _can_rank(self) -> Self:
        if self.objective != FRECHET and self.surrogate in ("encoder", "ensemble"):
            from fewstep.tasks.metrics.metric import metric_class

            if metric_class(self.objective).signed:
                raise ValueError(
                    f"surrogate {self.surrogate!r} learns logarithms, and {self.objective} may be below 0: choose "
                    "forest, trees, gp or none"
                )
        return self

    @model_validator(mode="after")
    def _can_rank_by_moments(self) -> Self:
        if self.surrogate != MOMENTS:
            return self
        if self.space != "schedule" or self.quantized:
            raise ValueError("surrogate 'moments' ranks schedules of networks that are not quantised: choose another")
        if self.sampler != "s3":
            raise ValueError(f"surrogate 'moments' ranks children of s3, not of {self.sampler}: leave one of them away")
        if self.objective != FRECHET:
            raise ValueError(f"surrogate 'moments' tells the Frechet distance, not {self.objective}: choose another")
        return self

    @property
    def objective(self) -> str:
        """The metric that candidates are compared by."""
        return self.metric[0]

    @property
    def refinements_each(self) -> int:
        """How many refinements each NFE gets: one an elite, or one of the best elite."""
        return 1 if self.refine_to == "moments" else self.refined_elites

    def refine_plan(self, nfe: int, teacher_nfe: int, most: int) -> RefinePlan | MomentPlan:
        """As much as `most` calls pay for; a descent by gradient has at least LEAST_ITERATIONS."""
        if self.refine_to == "moments":
            samplings = most / nfe
            few, many = min(ENOUGH_TUNED_ON, samplings / SAMPLINGS), min(MOST_TUNED_ON, samplings / MORE_SAMPLINGS)
            images = int(max(few, many))
            whole = AT_ONCE if images < MOST_LOOKED_AT else MOST_LOOKED_AT
            images = max(whole, images // whole * whole)
            return MomentPlan(images=images, look=whole, limit=max(1, most), seed=self.seed)
        if self.refine_to == "reference":
            # Larger batches and small steps: the gradient of a distance between few samples is a noisy one.
            base = RefinePlan(distance="reference", batch=64, validation=512, speed=0.05, seed=self.seed)
        else:
            base = RefinePlan(distance=self.refine_to, images=128, validation=64, check_every=25, seed=self.seed)
        counts = range(LEAST_ITERATIONS, MOST_ITERATIONS + 1, 25)
        plans = [base.model_copy(update={"iterations": n}) for n in counts]
        return next((p for p in reversed(plans) if p.calls(nfe, teacher_nfe) <= most), plans[0])

    @model_validator(mode="after")
    def _has_a_part(self, info: ValidationInfo) -> Self:
        if (info.context or {}).get(STORED):
            return self
        if self.surrogate != "none" and self.sampler != "s3":
            raise ValueError(f"a surrogate ranks the children of sampler s3, not of {self.sampler}: leave it away")
        idle = FOR_NETWORKS if self.space == "schedule" else FOR_SCHEDULES
        if self.space not in ("schedule", "joint") and "quantization" not in self.space.split("+"):
            idle = (*idle, "calibration_iterations")
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no part in a search of space {self.space!r}: leave it away")
        return self

    @model_validator(mode="after")
    def _fits_its_space(self) -> Self:
        if self.space == "schedule":
            if self.base_schedule:
                raise ValueError("a schedule to calibrate with needs a space with quantisation: quantization or joint")
            return self
        if self.screen not in ("auto", "distance"):
            raise ValueError(f"space {self.space!r} screens by the distance to the teacher: leave --screen away")
        if self.sampler == "cmaes":
            raise ValueError(f"sampler 'cmaes' has one objective, space {self.space!r} has several: choose another")
        if self.quantized:
            raise ValueError(
                f"space {self.space!r} makes quantised networks of its own: leave --quantized away, or search space "
                "'schedule' for the one that you have"
            )
        if not self.moves_schedule:
            self._fits_one_schedule()
        return self

    def _fits_one_schedule(self) -> None:
        """ValueError where configs cannot be searched for the base schedule as it is."""
        if not self.base_schedule:
            raise ValueError(
                f"space {self.space!r} needs the schedule that is kept: --schedule PRESET/GRID@CALLS or FILE"
            )
        calls = SolverSchedule.from_json(self.base_schedule).nfe
        if self.nfes != (calls,):
            raise ValueError(
                f"the schedule has {calls} calls, not {self.nfes}: leave --nfe away, or search space 'joint'"
            )
        changing = {"warm_start": self.warm_start, "decisions": self.decisions, "guidance_range": self.guidance_range}
        for name, given in changing.items():
            if given:
                raise ValueError(f"{name} changes schedules, which space {self.space!r} keeps: search 'joint'")

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
