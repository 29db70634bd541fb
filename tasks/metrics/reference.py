"""What samples are compared with: the moments of a reference set in a feature space."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.data import DATASETS, load_dataset, load_image_folder
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.moments import Moments, ReferenceMoments, load_reference_npz
from fewstep.tasks.models.files import ModelFiles


def load_reference(
    reference: str, files: ModelFiles, features: str, extractor: FeatureExtractor
) -> tuple[ReferenceMoments, str]:
    """Reference moments (D,), (D, D) and their content address.

    `reference` is `auto` (the model's own reference.npz), a data set's name, an .npz file or a folder of
    images of the model's size. Raises DataError or ConfigurationError where it cannot be used.
    """
    if reference == "auto":
        own = files.root / "reference.npz"
        if features != "auto" or not own.is_file():
            raise ConfigurationError(
                f"model {files.name} brings no reference for these features: "
                "give --reference a folder of images, an .npz file or a data set name"
            )
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
