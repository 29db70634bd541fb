"""Images of schedules, measured by two metrics at once: the one that searches are given, and one that none sees.

`features` is the Frechet distance in the features that a user brings, `judge` the same in the pooled features (N, D) of
a network of another kind. Both compare with the images of `reference/`. What a group of images gave is kept on disk by
what it depends on, so that a killed run goes on, and two processes share what they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.unseen.own import OwnScheduler
from fewstep.errors import EvaluationError
from fewstep.search_spaces.point import as_point, content_key
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.data import load_image_folder
from fewstep.tasks.metrics._network import in_slices
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.interval import Interval, frechet_interval, paired_difference
from fewstep.tasks.metrics.moments import Array, Moments, ReferenceMoments, load_npz, merge_all, save_npz
from fewstep.tasks.models.conditions import BALANCED, NO_LABEL, Conditions
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.models.judge import judge_hash, load_judge
from fewstep.tasks.work import GROUP, Subject, WorkerSettings
from fewstep.tasks.worker import Worker

METRICS = ("features", "judge")
Groups = Mapping[str, Sequence[Moments]]
Sampler = SolverSchedule | OwnScheduler
# What exploding steps come to.
NOWHERE = Interval(float("inf"), float("inf"), float("inf"))


@dataclass(frozen=True)
class Checkpoint:
    """A folder of `models.py`, and where what is measured of it is kept."""

    folder: Path
    cache: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def model(self) -> str:
        """The diffusers directory."""
        return str(self.folder / "model")

    @cached_property
    def files(self) -> ModelFiles:
        """The model's."""
        return find_model(self.model)

    @property
    def labels(self) -> str:
        """Every class alike where the model knows classes."""
        return NO_LABEL if self.files.classes is None else BALANCED

    @cached_property
    def worker(self) -> Worker:
        """What renders."""
        features, reference = (str(self.folder / name) for name in ("features", "reference"))
        subject = Subject(self.model, features, reference, Conditions(labels=self.labels))
        return Worker(WorkerSettings(subject, threads=1))

    @cached_property
    def extractors(self) -> dict[str, Callable[[torch.Tensor], Array]]:
        """By metric, from images (N, C, H, W) to features (N, D)."""
        network = load_judge(str(self.folder / "judge"))
        weight = network.head.weight
        dim = weight.shape[1]

        def pooled(images: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(network.body(images).mean((2, 3)))

        return {
            "features": self.worker.extractor,
            "judge": lambda images: in_slices(pooled, images, GROUP, dim, weight),
        }

    @cached_property
    def references(self) -> dict[str, FrechetReference]:
        """By metric, from the same images."""
        images = torch.from_numpy(load_image_folder(self.folder / "reference", self.files.channels, self.files.size))
        moments = {metric: Moments.of(extract(images)) for metric, extract in self.extractors.items()}
        return {
            metric: FrechetReference.of(ReferenceMoments(m.mean, m.covariance, m.count))
            for metric, m in moments.items()
        }

    @cached_property
    def _identity(self) -> dict[str, object]:
        hashes = {"features": self.worker.extractor.hash, "judge": judge_hash(str(self.folder / "judge"))}
        return {"model": self.files.hash, "labels": self.labels, **hashes}

    def groups(self, sampler: Sampler, seed: int, images: int) -> Groups:
        """Moments of every GROUP images by metric; none where the steps explode."""
        key = content_key(**self._identity, sampler=sampler.hash, seed=seed)
        folder = self.cache / self.name / key
        found: dict[str, list[Moments]] = {metric: [] for metric in METRICS}
        for start in range(0, images, GROUP):
            paths = {metric: folder / f"{start:06}-{metric}.npz" for metric in METRICS}
            if not all(path.is_file() for path in paths.values()):
                try:
                    made = self._render(sampler, seed, start)
                except EvaluationError:
                    return {metric: () for metric in METRICS}
                folder.mkdir(parents=True, exist_ok=True)
                for metric, path in paths.items():
                    save_npz(path, Moments.of(self.extractors[metric](made)))
            for metric, path in paths.items():
                found[metric].append(load_npz(path))
        return found

    def _render(self, sampler: Sampler, seed: int, start: int) -> torch.Tensor:
        if isinstance(sampler, OwnScheduler):
            return sampler.render(self.worker, seed, start, GROUP)
        return self.worker.render(as_point(sampler), seed, start, GROUP)

    def distance(self, groups: Groups, metric: str) -> float:
        """The distance of all groups together; infinite where there are none."""
        held = groups[metric]
        return self.references[metric].distance(merge_all(held)) if held else float("inf")

    def interval(self, groups: Groups, metric: str) -> Interval:
        """The same with its interval; there must be three groups."""
        found = frechet_interval(self.references[metric], groups[metric]) if groups[metric] else NOWHERE
        assert found is not None
        return found

    def difference(self, first: Groups, second: Groups, metric: str) -> Interval:
        """Distance of `first` less that of `second`, paired by their noise."""
        if not (first[metric] and second[metric]):
            return NOWHERE
        found = paired_difference(self.references[metric], first[metric], second[metric])
        assert found is not None
        return found


def judged(samplers: Iterable[Sampler], checkpoint: Checkpoint, seed: int, images: int) -> list[Groups]:
    """What each sampler's images give by both metrics, in their order; whole groups of images."""
    return [checkpoint.groups(sampler, seed, images) for sampler in samplers]
