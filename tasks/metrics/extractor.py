"""Which features measure a model: its own classifier where it brings one, Inception otherwise."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics.features import ClassifierFeatures, FeatureExtractor, InceptionFeatures
from fewstep.tasks.models.classifier import load_classifier
from fewstep.tasks.models.files import ModelFiles


def make_extractor(features: str, files: ModelFiles, device: str) -> FeatureExtractor:
    """`auto`, `inception`, or a folder that holds a saved classifier.

    `auto` takes the `classifier/` beside the model, which the zoo's entries have.
    """
    own = files.root / "classifier"
    if features == "inception" or (features == "auto" and not own.is_dir()):
        return InceptionFeatures(device=device)
    folder = own if features == "auto" else Path(features)
    if not folder.is_dir():
        raise ConfigurationError(f"unknown features {features!r}: use auto, inception or a classifier's folder")
    classifier = load_classifier(folder, device)
    if (classifier.config["channels"], classifier.config["size"]) != (files.channels, files.size):
        raise ConfigurationError(
            f"the classifier in {folder} takes {classifier.config['channels']}x{classifier.config['size']} images, "
            f"the model {files.name} makes {files.channels}x{files.size}"
        )
    short = files.name.split("-")[0] if features == "auto" else folder.name
    return ClassifierFeatures(classifier, f"fid-{short}")
