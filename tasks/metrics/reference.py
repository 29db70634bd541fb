"""What samples are compared with: the moments of a reference set in a feature space."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.data import DATASETS, SOURCES, Source, open_source
from fewstep.tasks.data.arrays import array_names, images_in
from fewstep.tasks.metrics.extractor import feature_kind
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.moments import KINDS, Array, Moments, ReferenceMoments, load_reference_npz, merge_all
from fewstep.tasks.metrics.partial import Partial
from fewstep.tasks.models.files import ModelFiles

# Features (B, D) of the images of these numbers, IMAGES at a time, in order.
FeaturesOf = Callable[[range], Iterator[Array]]
# As many of a reference's images are looked at one by one, evenly spaced over them.
MOST_SAMPLES = 10_000
# Images at once: a multiple of what extractors take at once, so that a feature's bits do not depend on it.
IMAGES = 256
# Numbers of features that are kept until their moments are taken, 1 GiB of them: what is smaller has those of one go.
FEATURES = 2**27


def load_reference(
    reference: str, files: ModelFiles, features: str, extractor: FeatureExtractor
) -> tuple[ReferenceMoments, str]:
    """Reference moments (D,), (D, D) and their content address.

    `reference` is `auto` (what the model or the features bring, or the data it was trained on), an .npz file of
    moments, or whatever `open_source` opens, whose images are brought to the model's size. Raises DataError or
    ConfigurationError where it cannot be used.
    """
    kind, argument = feature_kind(features, files)
    own = kind.reference(argument, files) if reference == "auto" else None
    if reference == "auto" and (own is None or not own.is_file()):
        reference = _own_dataset(files)
    if reference == "auto" and own is not None:
        moments = load_reference_npz(own)
    elif _holds_moments(reference):
        moments = load_reference_npz(Path(reference))
    else:
        moments = moments_of(open_source(reference), files.channels, files.size, extractor)
    if moments.mean.size != extractor.dim:
        raise DataError(
            f"reference {reference} has {moments.mean.size} features, {extractor.name} has {extractor.dim}: "
            "make it with the same features"
        )
    digest = hashlib.sha256(moments.mean.tobytes() + moments.covariance.tobytes()).hexdigest()
    return moments, digest[:16]


def load_reference_features(reference: str, files: ModelFiles, extractor: FeatureExtractor) -> tuple[Array, str]:
    """Features (M, D) of a reference's images, at most MOST_SAMPLES of them, and their content address.

    `reference` is as in `load_reference`; of `auto` the data set that the model was trained on. DataError for a file
    of moments, which say nothing of single images.
    """
    if reference != "auto" and _holds_moments(reference):
        raise DataError(
            f"reference {reference} holds the moments of features, and this metric needs the images themselves: give "
            "--reference images (a folder, Parquet, tars, ...) or a data set's name, or measure frechet"
        )
    source = open_source(_own_dataset(files) if reference == "auto" else reference)
    batches = source.batches(files.channels, files.size, IMAGES)
    features = np.concatenate([extractor(torch.from_numpy(batch.images)) for batch in batches])
    if len(features) > MOST_SAMPLES:
        features = features[np.arange(MOST_SAMPLES) * len(features) // MOST_SAMPLES]
    return features, hashlib.sha256(features.tobytes()).hexdigest()[:16]


def _own_dataset(files: ModelFiles) -> str:
    """The installed data set that a model of ours was trained on; ConfigurationError where nothing says it."""
    if files.trained_on not in DATASETS:
        raise ConfigurationError(
            f"model {files.name} brings no reference for these features: "
            "give --reference images (a folder, Parquet, tars, ...), an .npz file or a data set name"
        )
    return files.trained_on


def moments_of(source: Source, channels: int, size: int, extractor: FeatureExtractor) -> ReferenceMoments:
    """What `measured` gives, as a reference."""
    moments = measured(source, channels, size, extractor)
    return ReferenceMoments(moments.mean, moments.covariance, moments.count)


def measured(
    source: Source,
    channels: int,
    size: int,
    extractor: FeatureExtractor,
    partial: Partial | None = None,
    features: FeaturesOf | None = None,
) -> Moments:
    """Moments of a source's images at a size, which are read one batch after the other.

    With `partial` it goes on where a killed one stopped. `features` works them out elsewhere, of all images from a
    number on. Raises DataError where there are fewer than 2.
    """
    groups, kept = partial.load() if partial else ([], [])
    begin = sum(group.count for group in groups) + sum(map(len, kept))
    rest = range(begin, len(source))
    for found in features(rest) if features else features_of(source, channels, size, extractor, rest):
        kept.append(found)
        if partial:
            partial.add(found)
        if sum(part.size for part in kept) >= FEATURES:
            groups.append(Moments.of(np.concatenate(kept)))
            kept.clear()
            if partial:
                partial.close(groups[-1])
    if kept:
        groups.append(Moments.of(np.concatenate(kept)))
    moments = merge_all(groups) if groups else None
    if moments is None or moments.count < 2:
        raise DataError(f"the reference {source.place} holds fewer than 2 images: give more")
    return moments


def features_of(
    source: Source, channels: int, size: int, extractor: FeatureExtractor, numbers: range
) -> Iterator[Array]:
    """Features (B, D) of the images of these numbers, IMAGES at a time."""
    for batch in source.batches(channels, size, IMAGES, numbers):
        yield extractor(torch.from_numpy(batch.images))


def measurement_key(source: Source, channels: int, size: int, extractor: FeatureExtractor) -> str:
    """Names what `measured` gives of them: files by name, size and time, and what they are compared by."""
    parts = (source.place, source.fingerprint, str(len(source)), channels, size, extractor.name, extractor.hash)
    return hashlib.sha256("\n".join(map(str, (*parts, IMAGES, FEATURES))).encode()).hexdigest()


def _holds_moments(reference: str) -> bool:
    """Whether it is an .npz file that holds no images, or statistics of them besides."""
    if reference.partition(":")[0] in SOURCES.names and ":" in reference:
        return False
    path = Path(reference)
    if path.suffix.lower() != ".npz" or path.is_dir():
        return False
    names = set(array_names(path)) if path.is_file() else set()
    return not images_in(names) or any(set(kind) <= names for kind in KINDS)
