"""Where Dask's tasks run: on the Ray cluster that this process has joined, or on its own threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fewstep.errors import ConfigurationError, DataError, FewstepError

if TYPE_CHECKING:
    from fewstep.pipeline.executors.base import ExecutionSettings
    from fewstep.tasks.data import Source
    from fewstep.tasks.metrics.features import FeatureExtractor
    from fewstep.tasks.metrics.moments import Array
    from fewstep.tasks.metrics.reference import FeaturesOf
    from fewstep.tasks.models.files import ModelFiles

# Batches of images in a task; tasks a core that are under way at once, whose features fit into memory.
BATCHES, AHEAD = 4, 2


def dask_scheduler() -> Any:
    """What `scheduler` of Dask's `compute` takes. Joins nothing, and does not import Ray where nothing did."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return "threads"
    from ray.util.dask import ray_dask_get

    return ray_dask_get


def features_on_cluster(
    execution: ExecutionSettings, source: Source, place: str, files: ModelFiles, features: str
) -> FeaturesOf:
    """Features of a source's images by Dask on a Ray cluster, each batch as this process would make it.

    ConfigurationError where there is no cluster, or for a device but the CPU; DataError, when it is used, where a
    machine sees other images.
    """
    import ray

    from fewstep.pipeline.executors.ray_cluster import join

    if execution.device != "cpu":
        raise ConfigurationError(
            f"--device {execution.device}: a cluster works features out on its cores; leave --device or --address out"
        )
    if not ray.is_initialized():
        join(execution.address)
    cores = int(ray.cluster_resources().get("CPU", 1))
    facts = (place, source.fingerprint, len(source), files, features)
    return lambda numbers: _spread(numbers, facts, AHEAD * cores)


def _spread(numbers: range, facts: tuple[Any, ...], at_once: int) -> Iterator[Array]:
    import dask

    from fewstep.tasks.metrics.reference import IMAGES

    each = BATCHES * IMAGES
    pieces = [numbers[i : i + each] for i in range(0, len(numbers), each)]
    for first in range(0, len(pieces), at_once):
        tasks = [dask.delayed(_of_piece, pure=False)(*facts, piece) for piece in pieces[first : first + at_once]]
        try:
            found = dask.compute(*tasks, scheduler=dask_scheduler())
        except Exception as error:
            cause = getattr(error, "cause", None)
            raise cause if isinstance(cause, FewstepError) else error from None
        for arrays in found:
            yield from arrays


def _of_piece(
    place: str, fingerprint: str, count: int, files: ModelFiles, features: str, numbers: range
) -> list[Array]:
    """Features of some images, on whatever machine this is."""
    from fewstep.tasks.metrics.reference import features_of

    source, extractor = _opened(place, fingerprint), _extractor(features, files)
    if (source.fingerprint, len(source)) != (fingerprint, count):
        raise DataError(f"a machine of the cluster sees other images at {place}: put them where all see the same")
    return list(features_of(source, files.channels, files.size, extractor, numbers))


@lru_cache(maxsize=1)
def _opened(place: str, fingerprint: str) -> Source:
    from fewstep.tasks.data import open_source

    return open_source(place)


@lru_cache(maxsize=1)
def _extractor(features: str, files: ModelFiles) -> FeatureExtractor:
    from fewstep.tasks.metrics.extractor import make_extractor

    return make_extractor(features, files, "cpu")
