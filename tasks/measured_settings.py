"""What is sampled and measured: the model, what it is asked for, and what its images are compared by."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.checked import Checked
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ModelFiles, files_of
from fewstep.tasks.models.loading import Loading

# More images than this nobody waits for.
MOST_IMAGES = 100_000_000
REPORT_SEED_OFFSET = 1_000_003
FRECHET = "frechet"
TEACHER = "unipc-2-bh2/karras-zero@64"
METRICS_TEXT = (
    "frechet, kid, cmmd, precision, recall, clip-score, scorer, perceptual, holes, layouts, or what another package "
    "has; as NAME:FEATURES in other features"
)


def checked_metric(name: str) -> str:
    """The metric's name; ConfigurationError unless it measures images of one schedule by themselves."""
    if name == FRECHET:
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
    return tuple(map(checked_metric, names))


def _as_several(value: Any) -> Any:
    # Alone, as a study file may have it, and as studies stored it before there could be several.
    return (value,) if isinstance(value, str) else value


Metrics = Annotated[tuple[str, ...], BeforeValidator(_as_several), AfterValidator(_checked_metrics)]


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
