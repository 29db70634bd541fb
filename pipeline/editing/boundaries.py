"""Edits of one attribute outside a search: fit its boundaries, apply them at some strengths, show the images."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, DataError
from fewstep.files import read_json, read_text, write_text
from fewstep.pipeline.reports.pictures import COLUMNS, to_pixels, write_grid
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.editing.asked import check_guidance
from fewstep.tasks.editing.attributes import Part
from fewstep.tasks.editing.bench import Bench
from fewstep.tasks.editing.boundary import NEAR_CHANCE, Boundary
from fewstep.tasks.editing.figures import EditFigures
from fewstep.tasks.editing.identity import make_identity
from fewstep.tasks.editing.judge import check_judge
from fewstep.tasks.editing.latents import middle_block
from fewstep.tasks.editing.radius import Criterion, Radius, critical_step
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.metrics.extractor import feature_kind
from fewstep.tasks.models.noise_schedule import NoiseSchedule

SUBJECT_FILE, CONFIG_FILE, AUTO = "subject.json", "edit.json", "auto"
RADIUS_STEPS, RADIUS_IMAGES = 12, 100
LATENTS = ("z", "h")


def cache_folder() -> Path:
    """Where inversions and judges are kept by content, whatever command makes them."""
    return Path.home() / ".cache" / "fewstep" / "edits"


def parse_step(text: str, noise: NoiseSchedule) -> float:
    """`500` is a time as the network is told it, `lambda=-1.2` a lambda; ConfigurationError for anything else."""
    name, equals, number = text.partition("=")
    try:
        if equals and name.strip() == "lambda":
            return float(number)
        return noise.lambda_at(float(text))
    except ValueError:
        raise ConfigurationError(f"step {text!r}: give a time as 500, lambda=-1.2, or auto") from None


def step_grid(noise: NoiseSchedule, count: int = RADIUS_STEPS) -> tuple[float, ...]:
    """Steps at which edits are tried: even in time between all noise and clean, the start itself among them."""
    first, last = noise.time(noise.lambda_start), noise.time(noise.lambda_end)
    return tuple(noise.lambda_at(first + (last - first) * i / count) for i in range(count))


def found_step(bench: Bench, criterion: Criterion = "shell") -> tuple[Radius, list[Radius]]:
    """The critical step by radius, and the radii of all steps that were looked at."""
    radii = bench.radii(step_grid(bench.files.noise), RADIUS_IMAGES)
    return critical_step(radii, criterion), radii


def fit(bench: Bench, config: EditConfig, out: Path, force: bool = False) -> dict[str, Boundary]:
    """Fit the boundaries that a config uses and write them with it.

    DataError, without `force`, where held-out accuracy is near chance: such an edit moves at random.
    """
    boundaries = bench.boundaries(config)
    for latent, boundary in boundaries.items():
        if not boundary.facts.separable and not force:
            raise DataError(
                f"attribute {bench.attribute.name!r}: the boundary of {latent} is right on "
                f"{boundary.facts.accuracy:.0%} of held-out images, near chance (at most {NEAR_CHANCE:.0%}): choose "
                "another step, more --examples, or --force to edit all the same"
            )
    for latent, boundary in boundaries.items():
        boundary.save(out, latent)
    write_text(out / SUBJECT_FILE, bench.subject.model_dump_json(indent=2) + "\n")
    write_text(out / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")
    return boundaries


def load_fit(folder: Path) -> tuple[EditSubject, EditConfig, dict[str, Boundary]]:
    """What `fit` wrote; DataError where the folder holds no fit."""
    try:
        subject = EditSubject.build(**read_json(folder / SUBJECT_FILE))
        config = EditConfig.from_json(read_text(folder / CONFIG_FILE))
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{folder} holds no fitted edit ({error}): make one with `fewstep edit fit --out`") from error
    used = [latent for latent, on in zip(LATENTS, (config.uses_z, config.uses_h), strict=True) if on]
    return subject, config, {latent: Boundary.load(folder, latent) for latent in used}


def rejudged(subject: EditSubject, judging: Mapping[str, Any]) -> EditSubject:
    """A fit's subject with another judge or measure of identity; what the old judge called the sides goes with it."""
    own = ("judge_positive", "judge_negative", "judge_steps") if "judge" in judging else ()
    kept = {name: value for name, value in subject.model_dump().items() if name not in own}
    return EditSubject.build(**kept | dict(judging))


def check_config(config: EditConfig, given: Collection[str], bench: Bench) -> None:
    """ConfigurationError for options of an edit that would do nothing, and for ways that do not fit the model."""
    if "eta_window" in given and not config.eta:
        raise ConfigurationError("eta_window is where eta is on, and there is none: give --eta, or leave it out")
    if config.rescale and not config.uses_z:
        raise ConfigurationError("rescale gives z its old norm back, and only h is moved: leave it out")
    for way in (config.inversion, config.generation):
        if isinstance(way, SolverSchedule):
            check_guidance(way, bench.denoiser(bench.subject.prompt).conditions)
    if config.uses_h:
        middle_block(bench.denoiser().network.module)
    bench.nfe(config)


def check_measures(bench: Bench, loaded: bool = False) -> None:
    """ConfigurationError, before anything is edited, for a judge, features or identity that could not be used later.

    Features are known by name, or `loaded`, where they are used at once.
    """
    subject, files = bench.subject, bench.files
    check_judge(subject, files)
    make_identity(subject, files, "cpu")
    if loaded:
        assert bench.extractor.dim
    else:
        feature_kind(subject.features, files)


def at_strength(config: EditConfig, strength: float) -> EditConfig:
    """The config at another strength of z (of h, where only h is moved).

    Where the config has strengths of both, h keeps its ratio to z; where it has none, both get the same.
    """
    own = config.strength_z if config.uses_z else config.strength_h
    ratio = config.strength_h / own if own and config.uses_h else 1.0
    z, h = strength if config.uses_z else 0.0, strength * ratio if config.uses_h else 0.0
    return config.model_copy(update={"strength_z": z, "strength_h": h})


def strength_of(config: EditConfig) -> float:
    """The strength that `at_strength` would have to be told for the config as it is."""
    return config.strength_z if config.uses_z else config.strength_h


@dataclass(frozen=True)
class Applied:
    """Edits at one strength: the images (N, C, H, W), and the figures where they were judged."""

    strength: float
    images: Tensor
    figures: EditFigures | None = None


def apply(
    bench: Bench, config: EditConfig, strengths: Sequence[float], count: int, part: Part, judged: bool = True
) -> list[Applied]:
    """Edit a part's originals at each strength. Nothing but images where they are not `judged`."""
    found = []
    for strength in strengths:
        moved = at_strength(config, strength)
        images = bench.edit(part, count, moved)
        found.append(Applied(strength, images, bench.evaluate(part, count, moved, images) if judged else None))
    return found


def apply_to_images(
    bench: Bench,
    config: EditConfig,
    boundaries: dict[str, Boundary],
    images: Tensor,
    strengths: Sequence[float],
    judged: bool = False,
) -> list[Applied]:
    """Edit images of the user's own (N, C, H, W), by boundaries that were fitted before; figures where `judged`."""
    z = bench.inverter().z(bench.encode(images), config.step, config.inversion)
    editor, found = bench.editor(), []
    for strength in strengths:
        moved = at_strength(config, strength)
        edited = editor.edited(z, moved, boundaries)
        figures = bench.evaluate_own(images, edited, moved, boundaries) if judged else None
        found.append(Applied(strength, edited, figures))
    return found


def write_images(originals: Tensor, applied: Sequence[Applied], out: Path) -> dict[str, Path]:
    """The grid (a row a strength, the originals on top), and every image as a PNG in a folder a strength."""
    from PIL import Image

    rows = [("original", originals[:COLUMNS].numpy())]
    rows += [(f"strength {a.strength:g}", a.images[:COLUMNS].numpy()) for a in applied]
    files = {"grid.png": write_grid(rows, out / "grid.png")}
    for entry in applied:
        folder = out / f"strength_{entry.strength:g}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(to_pixels(entry.images.numpy())):
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{i:06d}.png")
    return files


def reconstruction_error(bench: Bench, config: EditConfig, originals: Tensor, part: Part) -> float:
    """Root mean square difference (images in [-1, 1]) of what inversion and the way back make of the originals."""
    same = bench.edit(part, len(originals), at_strength(config, 0.0))
    return math.sqrt(float((same - originals).double().square().mean()))


def figures_of(applied: Sequence[Applied]) -> list[dict[str, object]]:
    """Figures by strength, for a script."""
    return [{"strength": a.strength, **(a.figures.metrics() if a.figures else {})} for a in applied]


def facts_of(boundaries: dict[str, Boundary]) -> dict[str, dict[str, object]]:
    """What is told of the boundaries, by latent."""
    return {latent: asdict(boundary.facts) | {"spread": boundary.spread} for latent, boundary in boundaries.items()}


def check_images(images: Tensor, bench: Bench) -> None:
    """DataError where images are not of the model's size."""
    expected = (bench.files.channels, bench.files.size, bench.files.size)
    if tuple(images.shape[1:]) != expected:
        raise DataError(f"images are {tuple(images.shape[1:])}, the model makes {expected}: resize them")


def loaded_images(folder: Path, bench: Bench, count: int) -> Tensor:
    """The first `count` images of a folder or another source; more are said to be left. DataError as it says."""
    from fewstep.tasks.data import open_source
    from fewstep.tasks.image_folder import tell

    source = open_source(str(folder))
    first = range(min(count, len(source)))
    (batch,) = source.batches(bench.files.channels, bench.files.size, len(first), first)
    if len(source) > count:
        tell(f"{folder}: the first {count:,} of {len(source):,} images are used: give --count {len(source)} for all")
    return torch.from_numpy(batch.images)
