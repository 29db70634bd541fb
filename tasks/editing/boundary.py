"""The boundary of one attribute in one latent: a hyperplane from a linear SVM, and signed distances to it.

Notation: latents X (N, ...) flattened to (N, D); unit normal n (D,), offset c; signed distance d(x) = <x, n> + c, with
the intercept, in units of the latent; sigma = the standard deviation of d over the examples. An edit by strength s is
x + s sigma n, which moves d by exactly s sigma. Source: BoundaryDiffusion, section 3.3; the intercept and the unit of
the strength are ours: with them 0 is the identity.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from fewstep.errors import DataError
from fewstep.files import read_json
from fewstep.search_spaces.edit import BoundaryConfig

FIT_SHARE = 0.75
MIN_EXAMPLES = 8
# Held-out accuracy at or below which the classes count as not separable.
NEAR_CHANCE = 0.6
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BoundaryFacts:
    """What is told of a boundary: where it lies, and how good it is on examples that it was not fitted to."""

    attribute: str
    latent: str
    step: float
    time: float
    accuracy: float
    examples: int
    held_out: int
    C: float
    standardise: bool
    model: str
    model_hash: str
    inversion: str
    schema_version: int = SCHEMA_VERSION

    @property
    def separable(self) -> bool:
        """Whether the held-out accuracy is clearly above chance."""
        return self.accuracy > NEAR_CHANCE


@dataclass(frozen=True, eq=False)
class Boundary:
    """A hyperplane: `normal` of the latent's shape with norm 1, `offset`, and `spread`, the unit of the strength."""

    normal: Tensor
    offset: float
    spread: float
    facts: BoundaryFacts

    def distance(self, latents: Tensor) -> Tensor:
        """Signed distances (N,) of latents (N, ...), positive on the attribute's side."""
        flat = latents.flatten(1).double()
        return flat @ self.normal.flatten().to(flat) + self.offset

    def move(self, strength: float) -> Tensor:
        """What an edit adds to one latent: its signed distance grows by strength x spread."""
        return self.normal * (strength * self.spread)

    def save(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write NAME.safetensors and NAME.json; the JSON comes last and makes it whole."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors, facts = folder / f"{name}.safetensors", folder / f"{name}.json"
        aside = tensors.with_suffix(f".{os.getpid()}.tmp")
        save_file({"normal": self.normal.numpy()}, aside)
        aside.replace(tensors)
        aside = facts.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(
            json.dumps({"offset": self.offset, "spread": self.spread} | asdict(self.facts), indent=2) + "\n"
        )
        aside.replace(facts)
        return tensors, facts

    @classmethod
    def load(cls, folder: Path, name: str) -> Boundary:
        """Read what `save` wrote; DataError where it is missing or does not fit together."""
        try:
            facts = read_json(folder / f"{name}.json")
            normal = torch.from_numpy(load_file(folder / f"{name}.safetensors")["normal"])
            return cls(normal, float(facts.pop("offset")), float(facts.pop("spread")), BoundaryFacts(**facts))
        except (DataError, OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"no usable boundary {name} in {folder}: {error}; make it with `fewstep edit fit`"
            ) from error


@dataclass(frozen=True)
class Place:
    """Where latents were taken, for a boundary's facts."""

    attribute: str
    latent: str
    step: float
    time: float
    model: str
    model_hash: str
    inversion: str


def fit_boundary(positive: Tensor, negative: Tensor, config: BoundaryConfig, place: Place) -> Boundary:
    """The boundary between latents (N, ...) of both sides; the first FIT_SHARE of each side fit, the rest judge it.

    DataError where a side has fewer than MIN_EXAMPLES latents.
    """
    for side, latents in (("positive", positive), ("negative", negative)):
        if len(latents) < MIN_EXAMPLES:
            raise DataError(
                f"attribute {place.attribute!r} has {len(latents)} {side} examples, a boundary needs at least "
                f"{MIN_EXAMPLES} of each side: give more images"
            )
    sides = [latents.flatten(1).double().numpy() for latents in (positive, negative)]
    cuts = [round(FIT_SHARE * len(side)) for side in sides]
    fit = np.concatenate([side[:cut] for side, cut in zip(sides, cuts, strict=True)])
    held = np.concatenate([side[cut:] for side, cut in zip(sides, cuts, strict=True)])
    labels = np.repeat([1, 0], cuts)
    truth = np.repeat([1, 0], [len(side) - cut for side, cut in zip(sides, cuts, strict=True)])
    w, b = _svm(fit, labels, config)
    size = float(np.linalg.norm(w))
    if not size > 0 or not np.isfinite(size):
        raise DataError(f"the two sides of attribute {place.attribute!r} do not differ at this step: no boundary")
    normal, offset = w / size, b / size
    distances = held @ normal + offset
    # Balanced, since the sides may differ in size.
    accuracy = 0.5 * float((distances[truth == 1] > 0).mean() + (distances[truth == 0] < 0).mean())
    spread = float(np.concatenate([fit @ normal, held @ normal]).std())
    facts = BoundaryFacts(
        **vars(place),
        accuracy=accuracy,
        examples=len(fit),
        held_out=len(held),
        C=config.C,
        standardise=config.standardise,
    )
    return Boundary(torch.from_numpy(normal.astype(np.float32)).view(positive.shape[1:]), offset, spread, facts)


def _svm(
    X: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], config: BoundaryConfig
) -> tuple[npt.NDArray[np.float64], float]:
    """Weights (D,) and intercept in raw coordinates of an SVM with hinge loss."""
    from sklearn.svm import SVC

    mean, scale = X.mean(axis=0), np.ones(X.shape[1])
    if config.standardise:
        scale = X.std(axis=0)
        scale[scale == 0] = 1.0
    machine = SVC(kernel="linear", C=config.C, class_weight="balanced", cache_size=200)
    machine.fit((X - mean) / scale, labels)
    w = machine.coef_[0] / scale
    return w, float(machine.intercept_[0]) - float(w @ mean)
