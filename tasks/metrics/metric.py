"""What a metric is: measured on workers in parts that add up exactly, scored in the driver with an interval.

A metric is one class in one file and one line in the registry, or an entry point of the group `fewstep.metrics` in
another package. It is made with a `Setting`, on every worker and in the driver; what is heavy is loaded when it is
first used. It is asked for by its name, or as NAME:ARGUMENT where it takes one: features in place of the subject's,
as `kid:dinov2`, or whatever else it measures with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from fewstep.errors import ConfigurationError
from fewstep.plugins import Registry
from fewstep.search_spaces.point import Point, parse_point
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.interval import Interval
from fewstep.tasks.metrics.moments import Array, ReferenceMoments
from fewstep.tasks.metrics.reference import load_reference, load_reference_features
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.work import GROUP, Measured, Part, Subject, Task

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.tasks.rendering import Changed
    from fewstep.tasks.worker import Worker

T = TypeVar("T")

METRICS = Registry(
    "metric",
    {
        "frechet": "fewstep.tasks.metrics.frechet_metric:FrechetMetric",
        "kid": "fewstep.tasks.metrics.mmd:KID",
        "cmmd": "fewstep.tasks.metrics.mmd:CMMD",
        "precision": "fewstep.tasks.metrics.manifolds:Precision",
        "recall": "fewstep.tasks.metrics.manifolds:Recall",
        "clip-score": "fewstep.tasks.metrics.clip_score:ClipScore",
        "scorer": "fewstep.tasks.metrics.scorer:Scorer",
        "perceptual": "fewstep.tasks.metrics.perceptual:Perceptual",
        "distance": "fewstep.tasks.metrics.teacher_distance:TeacherDistance",
        "paired": "fewstep.tasks.metrics.paired:PairedFrechet",
        "holes": "fewstep.tasks.metrics.holes:HiddenError",
        "layouts": "fewstep.tasks.metrics.layouts:LayoutDisagreement",
        "edit": "fewstep.tasks.editing.metric:EditMetric",
        "refine": "fewstep.tasks.refinement.metric:Refinement",
    },
)


class Setting:
    """What all metrics of a process share: the subject, its model's files, and features loaded once, when asked for.

    Settings of several subjects that are given one `loaded` share what they load, where it is of the same places.
    """

    def __init__(
        self, subject: Subject, files: ModelFiles, device: str = "cpu", loaded: dict[tuple[str, ...], Any] | None = None
    ) -> None:
        self.subject, self.files, self.device = subject, files, device
        self.loaded = {} if loaded is None else loaded
        self._others: dict[str, Setting] = {}

    def of(self, features: str) -> Setting:
        """The same with other features; one for each, so that what is loaded is shared."""
        if features == self.subject.features:
            return self
        if features not in self._others:
            self._others[features] = Setting(
                replace(self.subject, features=features), self.files, self.device, self.loaded
            )
        return self._others[features]

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The subject's feature space."""
        return self._once("extractor", lambda: make_extractor(self.subject.features, self.files, self.device))

    @cached_property
    def reference(self) -> tuple[ReferenceMoments, str]:
        """Moments of the subject's reference in that space, and their content address."""
        reference, features = self.subject.reference, self.subject.features
        return self._once("reference", lambda: load_reference(reference, self.files, features, self.extractor))

    @cached_property
    def frechet(self) -> FrechetReference:
        """That reference for distances to it, its square root computed once for all metrics."""
        return self._once("frechet", lambda: FrechetReference.of(self.reference[0]))

    @cached_property
    def samples(self) -> tuple[Array, str]:
        """Features (M, D) of the images of the subject's reference, and their content address."""
        reference = self.subject.reference
        return self._once("samples", lambda: load_reference_features(reference, self.files, self.extractor))

    def _once(self, what: str, load: Callable[[], T]) -> T:
        key = (what, str(self.files.root), self.subject.features, self.subject.reference, self.device)
        if key not in self.loaded:
            self.loaded[key] = load()
        found: T = self.loaded[key]
        return found


@dataclass(frozen=True)
class Score:
    """A figure, lower is better, with the ends of its 95% interval where it has one, and further figures by name."""

    value: float
    low: float | None = None
    high: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


class Metric(ABC):
    """Base of all metrics.

    `figure` names what is measured, as tables say it. A metric that `grows` is measured group by group of GROUP images;
    its parts are stored, so that more images compute only the new ones. One that is not `standalone` takes
    arguments that only a search gives it. One that is `taught` compares with what the teacher makes, whose schedule
    (JSON) is the task's argument `teacher`. One that is `controlled` guesses the metric of that name from what another
    point, the argument `control` (JSON), gave on the argument `of` images. A figure that is `signed` may be 0 or below,
    and ratios of it say nothing.
    `interval` says in words what kind its is.
    """

    figure: ClassVar[str]
    grows: ClassVar[bool] = False
    standalone: ClassVar[bool] = True
    taught: ClassVar[bool] = False
    controlled: ClassVar[str] = ""
    signed: ClassVar[bool] = False
    interval: ClassVar[str] = ""

    def __init__(self, setting: Setting, argument: str = "") -> None:
        self.setting = self.placed(setting, argument)
        self.subject, self.files, self.argument = self.setting.subject, setting.files, argument

    def placed(self, setting: Setting, argument: str) -> Setting:
        """The setting that it measures in; ConfigurationError for an argument, unless a metric takes one."""
        if argument:
            raise ConfigurationError(f"metric {self.figure} takes no argument: leave {':' + argument!r} away")
        return setting

    def check(self) -> None:  # noqa: B027
        """Refuse, in the driver and before any worker is set up, what cannot be measured of the subject."""

    def prepare(self, worker: Worker) -> None:  # noqa: B027
        """Load what `measure` needs on a worker; by default nothing."""

    @abstractmethod
    def measure(self, worker: Worker, task: Task) -> Measured:
        """What the task's images are like. Raises EvaluationError where they cannot be measured."""

    @abstractmethod
    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The figure of all parts, in the order of their images, and of the figures that came with them."""

    def address(self, point: Point, images: int, seed: int, arguments: Mapping[str, str]) -> dict[str, object] | None:
        """What decides about the result, by name; None for the usual: model, point, noise, images, `identity`."""
        return None

    @property
    def identity(self) -> dict[str, object]:
        """What of the metric itself decides about its parts, by name: which it is, and whatever else it depends on."""
        return {"metric": self.figure}

    @property
    def standard(self) -> dict[str, object]:
        """What decides about the score of given parts, such as a reference."""
        return {"kind": self.figure}

    @property
    def features(self) -> str:
        """The feature space's name, for tables; empty where there is none."""
        return ""

    @property
    def reference(self) -> str:
        """What it is measured against, for tables."""
        return ""

    def paired(self, first: Sequence[Part], second: Sequence[Part]) -> Interval | None:
        """The first's figure less the second's, of the same noise, with its interval; None where it has none."""
        raise ConfigurationError(f"{self.figure} has no paired difference: compare by another metric")


def metric_class(given: str) -> type[Metric]:
    """The metric of NAME or NAME:ARGUMENT; ConfigurationError where there is none."""
    found: type[Metric] = METRICS.load(given.partition(":")[0])
    return found


def known_metrics() -> dict[str, type[Metric]]:
    """Every metric that can be loaded, by name: a package of somebody's that cannot is for whoever asks for it."""
    found: dict[str, type[Metric]] = {}
    for name in METRICS.names:
        with suppress(ConfigurationError):
            found[name] = METRICS.load(name)
    return found


def make_metric(given: str, setting: Setting) -> Metric:
    """The same, made. ConfigurationError where it takes no argument and is given one, or needs one."""
    found, argument = metric_class(given), given.partition(":")[2]
    return found(setting, argument) if argument else found(setting)


class FeatureMetric(Metric):
    """A metric that measures images in the subject's feature space, or its argument's, against the reference."""

    def placed(self, setting: Setting, argument: str) -> Setting:
        """The argument goes before the subject's features."""
        return setting.of(argument) if argument else setting

    @property
    def frechet(self) -> FrechetReference:
        """The reference, for distances to it."""
        return self.setting.frechet

    def check(self) -> None:
        """The features and the reference are there, and fit the model."""
        assert self.setting.reference[1]

    def prepare(self, worker: Worker) -> None:
        """Load the extractor."""
        assert self.setting.extractor.dim

    @property
    def identity(self) -> dict[str, object]:
        """Which it is, and the features' weights."""
        return {"metric": self.figure, "features": self.setting.extractor.hash}

    @property
    def standard(self) -> dict[str, object]:
        """The reference."""
        return {"kind": self.figure, "reference": self.reference}

    @property
    def features(self) -> str:
        """The feature space's name."""
        return self.setting.extractor.name

    @property
    def reference(self) -> str:
        """Content address of the reference's moments."""
        return self.setting.reference[1]


class SampleMetric(FeatureMetric):
    """One that needs the features of the reference's images one by one, where their moments do not say enough."""

    def check(self) -> None:
        """The features and the images are there, and fit the model."""
        assert self.setting.samples[1]

    def prepare(self, worker: Worker) -> None:
        """Load the extractor and the reference's images."""
        self.check()

    @property
    def reference(self) -> str:
        """Content address of the images' features."""
        return self.setting.samples[1]


def groups(worker: Worker, task: Task, network: Changed) -> Iterator[tuple[int, Tensor, float]]:
    """Index of the first, images (N, C, H, W) and denoiser calls of each group of a task, N at most GROUP."""
    point, end = parse_point(task.point), task.start + task.count
    for start in range(task.start, end, GROUP):
        before = network.denoiser.calls
        images = worker.render(point, task.seed, start, min(GROUP, end - start), network.denoiser)
        yield start, images, float(network.denoiser.calls - before)
