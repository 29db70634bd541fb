"""What a metric is: measured on workers in parts that add up exactly, scored in the driver with an interval.

A metric is one class in one file and one line in the registry, or an entry point of the group `fewstep.metrics` in
another package. It is made with a `Setting`, on every worker and in the driver; what is heavy is loaded when it is
first used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from fewstep.errors import ConfigurationError
from fewstep.plugins import Registry
from fewstep.search_spaces.point import Point
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.interval import Interval
from fewstep.tasks.metrics.moments import ReferenceMoments
from fewstep.tasks.metrics.reference import load_reference
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.work import Measured, Part, Subject, Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

METRICS = Registry(
    "metric",
    {
        "frechet": "fewstep.tasks.metrics.frechet_metric:FrechetMetric",
        "distance": "fewstep.tasks.metrics.teacher_distance:TeacherDistance",
        "holes": "fewstep.tasks.metrics.holes:HiddenError",
        "layouts": "fewstep.tasks.metrics.layouts:LayoutDisagreement",
        "edit": "fewstep.tasks.editing.metric:EditMetric",
        "refine": "fewstep.tasks.refinement.metric:Refinement",
    },
)


class Setting:
    """What all metrics of a process share: the subject, its model's files, and features loaded once, when asked for."""

    def __init__(self, subject: Subject, files: ModelFiles, device: str = "cpu") -> None:
        self.subject, self.files, self.device = subject, files, device

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The subject's feature space."""
        return make_extractor(self.subject.features, self.files, self.device)

    @cached_property
    def reference(self) -> tuple[ReferenceMoments, str]:
        """Moments of the subject's reference in that space, and their content address."""
        return load_reference(self.subject.reference, self.files, self.subject.features, self.extractor)


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
    arguments that only a search gives it. `interval` says in words what kind its is.
    """

    figure: ClassVar[str]
    grows: ClassVar[bool] = False
    standalone: ClassVar[bool] = True
    interval: ClassVar[str] = ""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.subject, self.files = setting, setting.subject, setting.files

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


class FeatureMetric(Metric):
    """A metric that measures images in the subject's feature space, against its reference."""

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
