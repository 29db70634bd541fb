"""The bound of a trained model, term by term: what is certified, what is estimated, and from which law.

Two laws of data stand beside each other. Of the held-out images only draws are known, so that the loss bounds the
velocity's error from above. Of the training images everything is known: the law of their latents is a mixture of
60,000 posteriors, its velocity has a closed form (`posteriors.py`), and the error is estimated without bias; that
bound is about the distance of samples to the training set. With labels both are laws of images and labels together:
each image is seen under its own label, and the constants are those under all labels.

Distances are Euclidean norms of images in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, ModelError
from fewstep.tasks.data import DATASETS, Dataset, load_dataset, load_images, open_source
from fewstep.tasks.flow.bound import W2Bound, profile_latent
from fewstep.tasks.flow.certificate import decoder_constant, unet_constant
from fewstep.tasks.flow.estimate import (
    Estimate,
    autoencoder,
    denoiser_fields,
    flow_matching_loss,
    mean_over,
    reconstruction_error,
    velocity_errors,
)
from fewstep.tasks.flow.lipschitz import Profile, decoder_lipschitz, velocity_profile
from fewstep.tasks.flow.posteriors import Fields, Posteriors, exact_fields
from fewstep.tasks.models.conditions import BALANCED, NO_LABEL, Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.networks import frozen, load_part
from fewstep.tasks.training.autoencoder import encode

HELD_OUT, TRAINING, ANY = "held-out", "training", "any"
CERTIFIED, AT_LEAST, AT_MOST, UNBIASED, PLUG_IN = "certified", "at least", "at most", "unbiased", "estimate"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """`images` for the means, `points` for the Lipschitz constants, `times` cells of [0, 1], `iterations` of power
    iteration and of the Krylov space, the seed of all noise."""

    images: int = 2000
    points: int = 128
    times: int = 32
    iterations: int = 20
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        for name in ("images", "points"):
            if getattr(self, name) < 2 * self.times:
                raise ConfigurationError(
                    f"{name} = {getattr(self, name)} at {self.times} times: give at least two for each time, "
                    f"{2 * self.times}"
                )


@dataclass(frozen=True)
class Term:
    """One line: a figure, its 95% interval or the ends it lies between, and what it says of the truth.

    `says` is `certified` (an upper bound at all inputs), `at least` (a lower bound from sampled points), `at most` (an
    upper bound, estimated), `unbiased`, or `estimate` (a bound with estimates in it). `log10` is that of `value`, for
    values that are no doubles.
    """

    term: str
    law: str
    value: float
    low: float
    high: float
    log10: float
    count: int
    says: str


@dataclass(frozen=True)
class TrainedBound:
    """All terms, and why something is not certified (empty where all is)."""

    terms: tuple[Term, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Coder:
    """Encoder (images, indices) -> latents, decoder, and the posteriors (mean, std) of many images, scaled."""

    encode: Callable[[Tensor, Any], Tensor]
    decode: Callable[[Tensor], Tensor]
    posteriors: Callable[[Tensor], tuple[Tensor, Tensor]]
    vae: Any = None


@dataclass(frozen=True)
class Splits:
    """Images the model was trained on, and images it was not; None where there are none or it is not known."""

    training: Dataset | None
    held_out: Dataset | None


def find_data(files: ModelFiles, data: str) -> Splits:
    """The images of a model: its recipe's data set for `auto`, a data set by name, or other images, which are held out.

    Raises ConfigurationError or DataError where they are not there or do not fit.
    """
    if data == "auto":
        if not files.trained_on:
            raise ConfigurationError(
                f"{files.root} has no recipe.json that says what it was trained on: "
                f"give --data a folder of images or one of {', '.join(DATASETS)}"
            )
        data = files.trained_on
    if data not in DATASETS:
        images = load_images(open_source(data), files.channels, files.size).images
        return Splits(None, Dataset(data, images, np.full(len(images), -1, np.int64), (), "", data))
    training, held_out = load_dataset(data), load_dataset(data, "test")
    shape = (files.channels, files.size, files.size)
    if training.images.shape[1:] != shape:
        raise ConfigurationError(f"data set {data} has images {training.images.shape[1:]}, the model makes {shape}")
    same = np.array_equal(training.images, held_out.images)
    return Splits(training, None if same else held_out)


def chosen(data: Dataset, labels: str, classes: int | None, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of at most `count` images, drawn evenly, the i-th of the label that `Conditions` gives image i."""
    order = np.random.default_rng([seed, 11]).permutation(len(data.images))
    if labels == NO_LABEL:
        return order[:count]
    if (data.labels < 0).any():
        raise ConfigurationError(f"{data.name} has no labels: leave --labels out, or give a data set by name")
    if labels != BALANCED:
        return np.asarray(order[data.labels[order] == int(labels)][:count], np.int64)
    assert classes is not None
    by_class = [order[data.labels[order] == k] for k in range(classes)]
    rows = min(len(found) for found in by_class)
    return np.asarray(np.stack([found[:rows] for found in by_class], 1).reshape(-1)[:count], np.int64)


def measure(
    files: ModelFiles, splits: Splits, plan: Plan, labels: str = NO_LABEL, device: str = "cpu", tell: Tell | None = None
) -> TrainedBound:
    """Every term of the bound for the model under the labels, and the bounds that they give."""
    say = tell or (lambda _: None)
    if files.text:
        raise ModelError(f"{files.name} takes prompts: the bound is for models with labels or without conditions")
    conditions = Conditions(labels=labels)
    conditions.check(files)
    denoiser = Denoiser(files, device, conditions)
    coder = _coder(files, plan.seed, device)
    fields = denoiser_fields(denoiser)
    laws = [(n, d) for n, d in ((HELD_OUT, splits.held_out), (TRAINING, splits.training)) if d is not None]
    terms: list[Term] = []
    notes: list[str] = []
    means: dict[str, tuple[Estimate, Estimate]] = {}
    latents: dict[str, Tensor] = {}
    for law, data in laws:
        say(f"reconstruction error and loss on {law} images")
        index = chosen(data, labels, files.classes, plan.images, plan.seed)
        images = torch.from_numpy(data.images[index]).to(device)
        latents[law] = _encoded(coder, images, plan.batch)
        squared = reconstruction_error(coder.encode, coder.decode, images, plan.batch)
        loss, _ = flow_matching_loss(fields, latents[law], plan.seed, plan.times, plan.batch)
        means[law] = squared, loss
        terms += [_root("reconstruction error", law, squared), _term("flow-matching loss", law, loss, AT_MOST)]
        terms.append(_term("spread of the data", law, _spread(images), UNBIASED))
    first = laws[0][0]
    points = latents[first][: plan.points]
    say(f"Lipschitz constants at {len(points)} {first} images")
    decoder = (
        _exactly(1.0) if coder.vae is None else decoder_lipschitz(coder.decode, points, plan.seed, plan.iterations)
    )
    profile = velocity_profile(fields, points, plan.seed, plan.times, plan.iterations)
    certified = _certified(files, coder, denoiser, notes)
    terms += _constants(first, decoder, profile, certified)
    terms += _bounds(first, means[first], decoder, profile, certified)
    if splits.training is not None:
        say("velocity of the training images in closed form")
        exact = _exact(coder, splits.training, conditions, files.classes, device)
        cells = velocity_errors(fields, exact, latents[TRAINING], plan.seed, plan.times, plan.batch)
        terms += _errors(cells)
        terms += _bounds_of_error(means[TRAINING][0], cells, decoder, profile)
    else:
        notes.append("no velocity error without the training images: the loss stands in its place")
    diameter = 2 * math.sqrt(files.channels * files.size**2)
    terms.append(
        Term("greatest distance of two images", ANY, diameter, diameter, diameter, math.log10(diameter), 0, CERTIFIED)
    )
    return TrainedBound(tuple(terms), tuple(notes))


def _coder(files: ModelFiles, seed: int, device: str) -> Coder:
    if files.vae_config is None:
        return Coder(lambda x, _: x, lambda x: x, lambda x: (x, torch.zeros_like(x)))
    from diffusers import AutoencoderKL

    vae = frozen(
        load_part(AutoencoderKL, files.root / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False), device
    )
    scale, shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)

    def posteriors(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = encode(vae, images, device)
        return (mean - shift) * scale, std * scale

    return Coder(*autoencoder(vae, seed), posteriors, vae)


@torch.no_grad()
def _encoded(coder: Coder, images: Tensor, batch: int) -> Tensor:
    parts = [range(i, min(i + batch, len(images))) for i in range(0, len(images), batch)]
    return torch.cat([coder.encode(images[p.start : p.stop], p) for p in parts])


def _exact(coder: Coder, data: Dataset, conditions: Conditions, classes: int | None, device: str) -> Fields:
    """v of the law of each label's training images, or of all where no label is asked for."""
    means, stds = coder.posteriors(torch.from_numpy(data.images))
    if conditions.labels == NO_LABEL:
        laws: dict[int | None, Posteriors] = {None: Posteriors(means.to(device), stds.to(device))}
    else:
        assert classes is not None
        wanted = range(classes) if conditions.labels == BALANCED else [int(conditions.labels)]
        where = {k: torch.from_numpy(np.flatnonzero(data.labels == k)) for k in wanted}
        laws = {k: Posteriors(means[w].to(device), stds[w].to(device)) for k, w in where.items()}
    return exact_fields(laws, lambda i: conditions.label(i, classes or 0))


def _certified(files: ModelFiles, coder: Coder, denoiser: Denoiser, notes: list[str]) -> tuple[float, float]:
    """Upper bounds of L_D and L, infinite with a note where there is none."""
    found = [1.0, math.inf]
    side = files.shape[1]
    try:
        if coder.vae is not None:
            found[0] = decoder_constant(coder.vae, side)
    except ModelError as error:
        found[0] = math.inf
        notes.append(f"decoder: {error}")
    try:
        if files.prediction_type != "flow_prediction":
            raise ModelError("only a network that predicts a flow's velocity is the field itself")
        found[1] = unet_constant(denoiser.network.module, side)
    except ModelError as error:
        notes.append(f"velocity: {error}")
    return found[0], found[1]


def _constants(law: str, decoder: Estimate, profile: Profile, certified: tuple[float, float]) -> list[Term]:
    terms = []
    for name, sampled, most in (
        ("Lipschitz constant, decoder", decoder, certified[0]),
        ("Lipschitz constant, velocity", profile.constant, certified[1]),
    ):
        terms.append(Term(name, law, sampled.value, sampled.low, most, _log10(sampled.value), sampled.count, AT_LEAST))
        terms.append(Term(name, ANY, most, sampled.low, most, _log10(most), 0, CERTIFIED))
    fastest = max(profile.growth)
    rate = Term("growth rate, velocity", law, fastest, fastest, certified[1], _log10(fastest), profile.count, AT_LEAST)
    return [*terms, rate]


def _bounds(
    law: str, means: tuple[Estimate, Estimate], decoder: Estimate, profile: Profile, certified: tuple[float, float]
) -> list[Term]:
    """The theorem with the loss in the place of the error: with certified constants, and with sampled ones."""
    lines = []
    for says, constants in (
        ("certified constants", certified),
        ("sampled constants", (decoder.value, profile.constant.value)),
    ):
        value, low, high = (
            W2Bound(math.sqrt(s), constants[0], constants[1], e)
            for s, e in zip(_ends(means[0]), _ends(means[1]), strict=True)
        )
        kind = AT_MOST if constants is certified else PLUG_IN
        lines.append(
            Term(f"bound, {says}, loss", law, value.value, low.value, high.value, value.log10, means[1].count, kind)
        )
    return lines


def _errors(cells: list[Tensor]) -> list[Term]:
    """The velocity's error over all times, and its mean within quarters of them, where the cells fill quarters."""
    terms = [_term("velocity error", TRAINING, mean_over(cells), UNBIASED)]
    quarter = len(cells) // 4 if len(cells) % 4 == 0 else 0
    for k in range(4 if quarter else 0):
        name = f"velocity error, t {k / 4:g} to {(k + 1) / 4:g}"
        terms.append(_term(name, TRAINING, mean_over(cells[k * quarter : (k + 1) * quarter]), UNBIASED))
    return terms


def _bounds_of_error(squared: Estimate, cells: list[Tensor], decoder: Estimate, profile: Profile) -> list[Term]:
    """The theorem, its form without Young's inequality, and by profiles in t, with the velocity's error itself."""
    error = mean_over(cells)
    L = profile.constant.value
    three = [W2Bound(math.sqrt(s), decoder.value, L, e) for s, e in zip(_ends(squared), _ends(error), strict=True)]
    latent = profile_latent(np.array(profile.growth), np.array([float(cell.mean()) for cell in cells]))
    # The interval of the error alone, as if its profile grew as a whole.
    by_profile = [
        math.sqrt(s) + decoder.value * latent * (math.sqrt(e / error.value) if error.value else 0.0)
        for s, e in zip(_ends(squared), _ends(error), strict=True)
    ]
    lines = {
        "bound, sampled constants, error": [b.value for b in three],
        "bound, without Young's inequality": [b.sharp for b in three],
        "bound, by growth rate and error at t": by_profile,
    }
    logs = {"bound, sampled constants, error": three[0].log10}
    return [
        Term(name, TRAINING, value, low, high, logs.get(name, _log10(value)), error.count, PLUG_IN)
        for name, (value, low, high) in lines.items()
    ]


def _spread(images: Tensor) -> Estimate:
    """sqrt(E|x - E x|^2): the distance of the data to a model that only makes the mean image."""
    squares = (images.double() - images.double().mean(0)).square().flatten(1).sum(1)
    half = 1.96 * float(squares.std()) / math.sqrt(len(squares))
    mean = float(squares.mean())
    value, low, high = (math.sqrt(max(0.0, v)) for v in (mean, mean - half, mean + half))
    return Estimate(value, low, high, len(squares))


def _ends(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value, 0)


def _root(name: str, law: str, squared: Estimate) -> Term:
    value, low, high = map(math.sqrt, _ends(squared))
    return Term(name, law, value, low, high, _log10(value), squared.count, UNBIASED)


def _term(name: str, law: str, found: Estimate, says: str) -> Term:
    return Term(name, law, *_ends(found), _log10(found.value), found.count, says)


def _log10(value: float) -> float:
    return math.log10(value) if 0 < value < math.inf else math.inf if value > 0 else -math.inf
