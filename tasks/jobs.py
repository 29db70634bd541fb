"""What a worker does besides measuring: hand out images, see to it that a network is calibrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fewstep.plugins import Registry
from fewstep.search_spaces.point import parse_point
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.work import Measured, Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

JOBS = Registry("job", {"images": "fewstep.tasks.jobs:Images", "calibrate": "fewstep.tasks.jobs:Calibrate"})


class Job:
    """Base of the jobs: made as metrics are, and asked the same question."""

    def __init__(self, setting: Setting) -> None:
        pass

    def prepare(self, worker: Worker) -> None:
        """Nothing to load."""


class Images(Job):
    """The images themselves."""

    def measure(self, worker: Worker, task: Task) -> Measured:
        """The pixels, and the figures of the network that made them."""
        point = parse_point(task.point)
        network = worker.network(point)
        images = worker.render(point, task.seed, task.start, task.count, network.denoiser)
        return Measured(figures=network.figures, images=images.cpu().numpy().astype(np.float32))


class Calibrate(Job):
    """A point's network, calibrated and kept."""

    def measure(self, worker: Worker, task: Task) -> Measured:
        """Its figures."""
        return Measured(figures=worker.network(parse_point(task.point)).figures)
