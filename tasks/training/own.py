"""Train a network on one's own images: a recipe that says what is not known from the data, a source, an autoencoder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fewstep.errors import ConfigurationError
from fewstep.files import read_text
from fewstep.search_spaces.checked import first_problem
from fewstep.tasks.data import Source, open_source
from fewstep.tasks.image_file import RULE
from fewstep.tasks.training.cache import LABELS, Cache, encoded
from fewstep.tasks.training.card import own_card
from fewstep.tasks.training.diffusion import train_network
from fewstep.tasks.training.encoders import LatentEncoder, PixelEncoder, find_autoencoder, load_autoencoder
from fewstep.tasks.training.entry import StageProgress, save_index, save_parts
from fewstep.tasks.training.examples import Examples, StoredLatents, StoredPixels
from fewstep.tasks.training.networks import check_network
from fewstep.tasks.training.presets import preset_network
from fewstep.tasks.training.processes import Processes, processes_of
from fewstep.tasks.training.recipe import TrainingRecipe

# What says nothing here: a bundled data set's, its classifier's, its autoencoder's.
UNUSED = (
    *("dataset", "autoencoder", "condition", "holes", "starts_from", "autoencoder_of"),
    *("features_of", "classifier_width", "classifier_steps", "feature_dim"),
)
COLOURS = 3


def recipe_file(path: Path) -> dict[str, Any]:
    """The fields of a recipe's TOML file; ConfigurationError where it is none."""
    text = read_text(path, "the recipe", ConfigurationError)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no TOML file: {error}") from None


def train_own(
    fields: Mapping[str, Any],
    data: str,
    autoencoder: str | None,
    out: Path,
    checkpoints: Path,
    device: str = "cpu",
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Train what a recipe's `fields` ask for into `out`, a model's directory; returns the card's figures.

    Latents, or pixels of 8 bits without an autoencoder, are kept in `checkpoints`, where a killed run goes on. Where
    several processes were launched, each trains its part of every batch and the first one writes.
    Raises DataError, ModelError or ConfigurationError where data, autoencoder and recipe do not fit together.
    """
    source = open_source(data)
    here = processes_of(device)
    vae = None if autoencoder is None else load_autoencoder(find_autoencoder(autoencoder), here.device)
    recipe, size, channels = fitting_recipe(fields, source, vae)
    check_network(recipe)
    show = progress if here.first else None
    cache = _cached(recipe, source, vae, checkpoints, channels, size, here, show)
    network, scheduler, _ = train_network(
        recipe,
        _examples(cache, vae),
        cache.array(LABELS),
        checkpoints,
        here.device,
        progress=partial(show, "network") if show else None,
        processes=here,
    )
    figures = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": data,
        "images": len(source),
        "classes": list(source.classes) or recipe.classes,
        "content": cache.content,
        "size": size,
        "resized": RULE,
        "trained_images": recipe.steps * recipe.batch,
        "processes": here.count,
        "date": datetime.now(UTC).date().isoformat(),
    }
    if here.first:
        save_parts(out, recipe, network, scheduler)
        (out / "card.json").write_text(json.dumps(figures, indent=2) + "\n")
        (out / "README.md").write_text(own_card(recipe, figures))
        save_index(out, recipe, network, vae, scheduler, rounded=False)
    here.wait()
    return figures


def fitting_recipe(fields: Mapping[str, Any], source: Source, vae: Any) -> tuple[TrainingRecipe, int, int]:
    """The whole recipe for a source and an autoencoder (None for pixels), the images' side and their channels.

    Raises ConfigurationError where it says what does not fit them, or too little.
    """
    if given := [name for name in UNUSED if name in fields]:
        raise ConfigurationError(f"a recipe for one's own data has no {', '.join(given)}: leave it out")
    asked = {"weights": "float32", "name": "model", **fields}
    size = asked.get("size") or (None if vae is None else vae.config.sample_size)
    if not isinstance(size, int) or size < 1:
        raise ConfigurationError("say the side of the images in pixels: size = 256")
    channels, shape = _shape(asked, size, vae)
    kind, network = _network(asked, shape[1])
    _set(network, "sample_size", shape[1])
    _set(network, "in_channels", shape[0])
    _set(network, "out_channels", shape[0])
    if asked.get("label_dropout") is not None:
        asked["classes"] = _classes(asked, source)
        _set(network, *_label_argument(kind, asked["classes"]))
    elif kind == "transformer":
        network.setdefault("num_embeds_ada_norm", 1)
    try:
        recipe = TrainingRecipe.model_validate(asked | {"size": size, kind: network})
    except ValidationError as error:
        raise ConfigurationError(f"the recipe: {first_problem(error)}") from None
    return recipe, size, channels


def _shape(asked: Mapping[str, Any], size: int, vae: Any) -> tuple[int, tuple[int, int]]:
    """Channels of the images, and channels and side of what the network makes."""
    if vae is None:
        network = asked.get("unet") or asked.get("transformer") or {}
        channels = int(network.get("in_channels", COLOURS)) if isinstance(network, Mapping) else COLOURS
        if channels not in (1, COLOURS):
            raise ConfigurationError(f"images have 1 or {COLOURS} channels, in_channels is {channels}")
        return channels, (channels, size)
    halvings = len(vae.config.block_out_channels) - 1
    if size % 2**halvings:
        raise ConfigurationError(f"size {size}: the autoencoder takes multiples of {2**halvings}")
    return int(vae.config.in_channels), (int(vae.config.latent_channels), size >> halvings)


def _network(asked: Mapping[str, Any], side: int) -> tuple[str, dict[str, Any]]:
    """`unet` or `transformer`, and its arguments so far."""
    given = [name for name in ("preset", "unet", "transformer") if asked.get(name)]
    if len(given) != 1:
        raise ConfigurationError(
            f"a recipe has one of preset, [unet] and [transformer], this one {' and '.join(given) or 'none'}"
        )
    if given[0] == "preset":
        kind, network = preset_network(str(asked["preset"]), side)
    elif isinstance(asked[given[0]], Mapping):
        kind, network = given[0], dict(asked[given[0]])
    else:
        raise ConfigurationError(f"{given[0]} is a table of arguments: write [{given[0]}] and them below")
    step = network.get("patch_size", 1) if kind == "transformer" else 2 ** (len(_levels(network)) - 1)
    if not isinstance(step, int) or step < 1 or side % step:
        raise ConfigurationError(f"the network takes sides that are multiples of {step}, not {side}: change size")
    return kind, network


def _levels(network: Mapping[str, Any]) -> Any:
    levels = network.get("block_out_channels", (224, 448, 672, 896))
    return levels if isinstance(levels, list | tuple) and levels else (0,)


def _label_argument(kind: str, classes: int) -> tuple[str, int]:
    """A UNet counts the null label among its labels, a transformer has it besides."""
    return ("num_embeds_ada_norm", classes) if kind == "transformer" else ("num_class_embeds", classes + 1)


def _classes(asked: Mapping[str, Any], source: Source) -> int:
    """How many labels there are: the source's names, or what the recipe says where it has none."""
    found, named = asked.get("classes"), len(source.classes)
    if found is not None and named and found != named:
        raise ConfigurationError(f"classes is {found}, {source.place} names {named}: leave it out")
    if not found and not named:
        raise ConfigurationError(
            f"label_dropout asks for labels, and {source.place} names none: say how many there are, as classes = 10, "
            "or leave label_dropout out"
        )
    return int(found or named)


def _set(network: dict[str, Any], name: str, value: int) -> None:
    """An argument that the data say; the recipe may say the same."""
    if network.setdefault(name, value) != value:
        raise ConfigurationError(f"{name} is {network[name]} in the recipe and {value} by the data: leave it out")


def _cached(
    recipe: TrainingRecipe,
    source: Source,
    vae: Any,
    folder: Path,
    channels: int,
    size: int,
    here: Processes,
    show: StageProgress | None,
) -> Cache:
    """The encoded data: the first process makes them, all others wait for it."""
    encoder = PixelEncoder() if vae is None else LatentEncoder(vae, here.device, recipe.flip)
    classes = None if recipe.label_dropout is None else recipe.classes

    def tell(done: int, count: int) -> None:
        if show:
            show("data", done, count, 0.0)

    if here.first:
        encoded(source, folder, channels, size, encoder, classes, tell)
    here.wait()
    return encoded(source, folder, channels, size, encoder, classes)


def _examples(cache: Cache, vae: Any) -> Examples:
    if vae is None:
        return StoredPixels(cache.array("pixels"), cache.content)
    scale, shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)
    return StoredLatents(cache.array("mean"), cache.array("std"), scale, cache.content, shift)
