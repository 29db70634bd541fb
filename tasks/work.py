"""What crosses the border to a worker: what it holds, what it is asked, and what it answers. Plain data, all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from fewstep.tasks.metrics.moments import Moments
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ModelFiles, files_of
from fewstep.tasks.models.loading import Loading

# Images of a group: what is stored of a metric that grows with its images.
GROUP = 250
# Of a part's values: features (N, D) of its images, where they are kept as they are.
FEATURES = "features"
# Of its sums: denoiser calls.
CALLS = "denoiser_calls"


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model, the features and the reference of its metrics, what it is asked for.

    `statistics` is a file of the model's statistics; `quantized` the folder of a quantised network that takes the place
    of the model's own, `runtime` how such networks run: imitating integers in floating point, or in them. `judge` is
    the classifier that says whether images show their labels. `calibration` is the schedule (JSON) under which the
    configs of points are calibrated; `edits` what is edited (JSON), see `tasks/editing/subject.py`. Empty: none.
    """

    model: str
    features: str = "auto"
    reference: str = "auto"
    conditions: Conditions = field(default_factory=Conditions)
    statistics: str = ""
    quantized: str = ""
    runtime: Literal["reference", "integer"] = "reference"
    judge: str = ""
    calibration: str = ""
    edits: str = ""
    loading: Loading = field(default_factory=Loading)

    @property
    def files(self) -> ModelFiles:
        """The model's files, a quantised network in its place where there is one."""
        return files_of(self)


@dataclass(frozen=True)
class WorkerSettings:
    """How to set up a worker: what it evaluates, device, CPU threads (0: leave), a folder for what it makes.

    `metrics` are the names of those that it will be asked for, as far as they are known.
    """

    subject: Subject
    device: str = "cpu"
    threads: int = 0
    cache: str = ""
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One unit of work: `metric` measures images start .. start + count - 1 of a point (JSON) under `seed`.

    Besides metrics there are a few jobs of other kinds, see `tasks/jobs.py`. `arguments` are what the metric or the job
    takes besides, by name. `also` names metrics that grow and measure the same images, which are sampled once.
    """

    key: str
    metric: str
    point: str
    seed: int
    start: int
    count: int
    arguments: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """What a metric found on images start .. start + count - 1: parts of disjoint images add up exactly.

    `moments` are those of features, `sums` are sums over the images, `values` have one entry an image.
    """

    start: int
    count: int
    moments: Moments | None = None
    sums: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """What came of a task. Denoiser calls include those of anything that had to be sampled first.

    `figures` are numbers about the point as a whole, such as the size of its network; `images` (N, C, H, W) and `point`
    (JSON) are there where a job makes them, `also` are the parts of the task's other metrics. `transient`: it is the
    machine that failed, see `tasks/faults.py`; `trace` says where.
    """

    task: Task
    parts: tuple[Part, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    images: npt.NDArray[np.float32] | None = None
    point: str = ""
    denoiser_calls: int = 0
    seconds: float = 0.0
    device: str = "cpu"
    error: str = ""
    transient: bool = False
    trace: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a metric or a job gives back on the worker; the rest of the result is the worker's to add.

    `calls` stands for the denoiser calls that were counted, where those depend on what was kept from before. `also` are
    the parts of other metrics of the same images.
    """

    parts: tuple[Part, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    images: npt.NDArray[np.float32] | None = None
    point: str = ""
    calls: int | None = None
    also: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
