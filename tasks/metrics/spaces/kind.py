"""What a kind of feature space is: how it is made, and by what it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.models.files import ModelFiles


def never(given: str, files: ModelFiles) -> bool:
    """A kind that is known by its name alone."""
    return False


def nothing(given: str, files: ModelFiles) -> Path | None:
    """A kind without moments of its own."""
    return None


@dataclass(frozen=True)
class FeatureKind:
    """A kind of feature space, found as NAME or NAME:ARGUMENT, or because it `takes` what was given.

    `make(argument, files, device)` gives the extractor of a model's images: the argument is what stands after the
    colon, or all that was given. It raises ConfigurationError, before anything is sampled, where it cannot. `gradients`
    says that they pass through its features, which then has a method `tensor`. `reference(argument, files)` is the file
    of moments that a space brings of the model's own data, where it does.
    """

    make: Callable[[str, ModelFiles, str], FeatureExtractor]
    takes: Callable[[str, ModelFiles], bool] = never
    gradients: bool = False
    reference: Callable[[str, ModelFiles], Path | None] = nothing
