"""What samples are compared with: the moments of a reference set in a feature space."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from fewstep.errors import ConfigurationError, DataError
from fewstep.files import read_json
from fewstep.tasks.data import DATASETS, load_dataset, load_image_folder
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.moments import Array, Moments, ReferenceMoments, load_reference_npz
from fewstep.tasks.models.files import ModelFiles

# As many of a reference's images are looked at one by one, evenly spaced over them.
MOST_SAMPLES = 10_000


def load_reference(
    reference: str, files: ModelFiles, features: str, extractor: FeatureExtractor
) -> tuple[ReferenceMoments, str]:
    """Reference moments (D,), (D, D) and their content address.

    `reference` is `auto` (the model's own reference.npz), a data set's name, an .npz file or a folder of
    images of the model's size. Raises DataError or ConfigurationError where it cannot be used.
    """
    own = files.root / "reference.npz"
    if reference == "auto" and (features != "auto" or not own.is_file()):
        reference = _own_dataset(files)
    if reference == "auto":
        moments = load_reference_npz(own)
    elif reference.lower().endswith(".npz") and not os.path.isdir(reference):
        moments = load_reference_npz(Path(reference))
    else:
        moments = _of_images(_reference_images(reference, files), extractor)
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
    if reference.lower().endswith(".npz") and not os.path.isdir(reference):
        raise DataError(
            f"reference {reference} holds the moments of features, and this metric needs the images themselves: give "
            "--reference a folder of images or a data set's name, or measure frechet"
        )
    images = _reference_images(_own_dataset(files) if reference == "auto" else reference, files)
    if len(images) > MOST_SAMPLES:
        images = images[np.arange(MOST_SAMPLES) * len(images) // MOST_SAMPLES]
    found = extractor(torch.from_numpy(images))
    return found, hashlib.sha256(found.tobytes()).hexdigest()[:16]


def _own_dataset(files: ModelFiles) -> str:
    """The installed data set that a model of ours was trained on; ConfigurationError where nothing says it."""
    recipe = files.root / "recipe.json"
    said = read_json(recipe) if recipe.is_file() else None
    dataset = said.get("dataset") if isinstance(said, dict) else None
    if dataset not in DATASETS:
        raise ConfigurationError(
            f"model {files.name} brings no reference for these features: "
            "give --reference a folder of images, an .npz file or a data set name"
        )
    return str(dataset)


def _reference_images(reference: str, files: ModelFiles) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if reference not in DATASETS:
        if not os.path.exists(reference):
            raise DataError(
                f"no reference {reference!r}: give a folder of images, an .npz file or one of {', '.join(DATASETS)}"
            )
        return load_image_folder(Path(reference), files.channels, files.size)
    images = load_dataset(reference).images
    if images.shape[1:] != (files.channels, files.size, files.size):
        raise DataError(
            f"data set {reference} has {images.shape[1]}x{images.shape[2]} images, model {files.name} makes "
            f"{files.channels}x{files.size}"
        )
    return images


def _of_images(
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]], extractor: FeatureExtractor
) -> ReferenceMoments:
    if len(images) < 2:
        raise DataError("the reference holds fewer than 2 images: give more")
    moments = Moments.of(extractor(torch.from_numpy(images)))
    return ReferenceMoments(moments.mean, moments.covariance, moments.count)
