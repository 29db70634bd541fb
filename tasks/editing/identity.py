"""How much of an image an edit leaves as it was: pixels and features beside the attribute, or a distance of choice.

A measure is a distance (N,) between edits and originals, 0 for equal ones; identity is 1 - d / d0, with d0 the mean
distance between an original and an unrelated image that has the attribute. So it is 1 for an untouched image and 0 for
the trivial edit, whatever the measure. Other packages bring measures by entry points of the group
`fewstep.identities`. Shapes: images (N, C, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.plugins import Registry
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.metrics.extractor import FEATURES, kind_in, make_extractor
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.metrics.perceptual import unit
from fewstep.tasks.metrics.spaces.loaded import load_callable, short_name
from fewstep.tasks.metrics.spaces.own import AUTO
from fewstep.tasks.models.files import ModelFiles

SURROUNDINGS = "surroundings"
IDENTITIES = Registry(
    "identity",
    {
        "perceptual": "fewstep.tasks.editing.identity:PERCEPTUAL",
        "distance": "fewstep.tasks.editing.identity:DISTANCE",
    },
    group="fewstep.identities",
)
BATCH = 32


class PairedDistance(Protocol):
    """A distance of images; `name` is for tables, `hash` is what decides about its values."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...

    def __call__(self, first: Tensor, second: Tensor) -> Array:
        """(N,) of images (N, C, H, W) and as many others, 0 for equal ones."""


@dataclass(frozen=True)
class IdentityKind:
    """A kind of measure: `make(argument, features, files, device)` gives the distance, for what stands behind NAME:
    and the features that the subject names otherwise. It raises ConfigurationError where it cannot."""

    make: Callable[[str, str, ModelFiles, str], PairedDistance]


class FeatureDistance:
    """Squared distance of features of unit length, as the metric `perceptual`: twice one less their cosine."""

    def __init__(self, features: str, files: ModelFiles, device: str) -> None:
        self._extractor = make_extractor(features, files, device)
        self.name, self.hash = f"perceptual, {self._extractor.name}", f"perceptual {self._extractor.hash}"

    def __call__(self, first: Tensor, second: Tensor) -> Array:
        """See PairedDistance."""
        pair = [unit(self._extractor(images)) for images in (first, second)]
        return np.asarray(np.square(pair[0] - pair[1]).sum(axis=1), np.float64)


class CallableDistance:
    """A distance of the user's own code, such as LPIPS."""

    def __init__(self, given: str, files: ModelFiles, device: str) -> None:
        if not given:
            raise ConfigurationError("identity distance needs what measures it: write it as distance:MODULE:CALLABLE")
        takes = "(images, images) -> N distances, of images (N, C, H, W) in [-1, 1]"
        self._call, address = load_callable(given, "identity", takes, device)
        self._given, self._device = given, device
        self.name, self.hash = short_name(given), f"distance {address}"
        drawn = torch.rand((4, files.channels, files.size, files.size), generator=torch.Generator().manual_seed(0))
        images = drawn * 2 - 1
        try:
            same, apart = self(images[:2], images[:2]), self(images[:2], images[2:])
        except EvaluationError as error:
            raise ConfigurationError(str(error)) from None
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigurationError(f"identity {given} fails: {type(error).__name__}: {reason}") from None
        if not (np.abs(same) <= 1e-3 * np.abs(apart).max()).all() or not (apart > 0).all():
            raise ConfigurationError(
                f"identity {given} gives {same[0]:.4g} for equal images and {apart[0]:.4g} for others: a distance is 0 "
                "for equal ones and above it for others"
            )

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Array:
        """See PairedDistance; EvaluationError where it is not one number an image."""
        parts = zip(torch.split(first, BATCH), torch.split(second, BATCH), strict=True)
        return np.concatenate([self._part(a.to(self._device), b.to(self._device)) for a, b in parts])

    def _part(self, first: Tensor, second: Tensor) -> Array:
        found: Any = self._call(first, second)
        if isinstance(found, Tensor):
            found = found.detach().double().cpu().numpy()
        values = np.asarray(found, np.float64)
        # LPIPS gives (N, 1, 1, 1).
        values = values.reshape(-1) if values.size == len(first) else values
        if values.shape != (len(first),) or not np.isfinite(values).all():
            raise EvaluationError(
                f"identity {self._given} gives {values.shape} for {len(first)} pairs of images: one finite number each "
                "is due"
            )
        return values


def make_identity(subject: EditSubject, files: ModelFiles, device: str) -> PairedDistance | None:
    """The subject's measure of identity, None for the built-in one.

    `perceptual` alone is in the subject's features, a feature space alone is `perceptual` in that one.
    """
    given = subject.identity
    if given in ("", SURROUNDINGS):
        return None
    name, _, argument = given.partition(":")
    if name in IDENTITIES.names:
        kind: IdentityKind = IDENTITIES.load(name)
        return kind.make(argument, subject.features, files, device)
    if given != AUTO and kind_in(FEATURES, given, files) is None:
        raise ConfigurationError(
            f"unknown identity {given!r}: give {SURROUNDINGS}, {', '.join(IDENTITIES.names)}, or a feature space as "
            "for --features"
        )
    return FeatureDistance(given, files, device)


PERCEPTUAL = IdentityKind(
    lambda argument, features, files, device: FeatureDistance(argument or features, files, device)
)
DISTANCE = IdentityKind(lambda argument, features, files, device: CallableDistance(argument, files, device))
