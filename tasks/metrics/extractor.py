"""Which features measure a model: its own classifier where it brings one, Inception otherwise."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics.features import ClassifierFeatures, FeatureExtractor, InceptionFeatures
from fewstep.tasks.models.classifier import load_classifier
from fewstep.tasks.models.files import ModelFiles


def classifier_folder(features: str, files: ModelFiles) -> Path | None:
    """Where the classifier is that these features are of; None where they are Inception's."""
    own = files.root / "classifier"
    if features == "inception" or (features == "auto" and not own.is_dir()):
        return None
    return own if features == "auto" else Path(features)


def make_extractor(features: str, files: ModelFiles, device: str) -> FeatureExtractor:
    """`auto`, `inception`, or a folder that holds a saved classifier.

    `auto` takes the `classifier/` beside the model, which the zoo's entries have.
    """
    folder = classifier_folder(features, files)
    if folder is None:
        return InceptionFeatures(device=device)
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
