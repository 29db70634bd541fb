"""From a recipe to a zoo entry: network, scheduler, classifier, reference moments, recipe and model card.

With latents the autoencoder is trained first, or taken from another entry, and the data are encoded by it once. A
recipe that starts from another entry takes that one's autoencoder and first weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.data import Dataset, load_dataset
from fewstep.tasks.metrics.features import ClassifierFeatures, FeatureExtractor
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.moments import Moments, save_npz
from fewstep.tasks.models.classifier import SmallClassifier, load_classifier
from fewstep.tasks.models.condition_config import FOLDER as CONDITION
from fewstep.tasks.models.decoder import encoder_of
from fewstep.tasks.models.files import OWN_FILE, ModelFiles, find_model
from fewstep.tasks.models.image_condition import build_condition
from fewstep.tasks.models.networks import load_network, load_part
from fewstep.tasks.training.autoencoder import check_latents, encode_once, reconstruct, train_autoencoder
from fewstep.tasks.training.card import model_card
from fewstep.tasks.training.classifier import accuracy, train_classifier
from fewstep.tasks.training.diffusion import train_network
from fewstep.tasks.training.examples import Examples, Maps, Pixels
from fewstep.tasks.training.recipe import TrainingRecipe

# Stage ("autoencoder" or "network"), step, steps, mean loss.
StageProgress = Callable[[str, int, int, float], None]


def train_entry(
    recipe: TrainingRecipe,
    out: Path,
    checkpoints: Path,
    device: str = "cpu",
    progress: StageProgress | None = None,
    start: str | None = None,
) -> dict[str, Any]:
    """Train everything a zoo entry holds into `out`; resumes from `checkpoints`. Returns the card's figures.

    `start` is another place of the entry that the recipe starts from. Raises DataError where the data set is not
    installed, ConfigurationError where the networks do not fit it, ModelError where the start is not there.
    """
    if start is not None and recipe.starts_from is None:
        raise ConfigurationError(f"{recipe.name} is trained from scratch: leave --from out")
    begun = _entry(recipe, recipe.starts_from, start)
    given = begun or _entry(recipe, recipe.autoencoder_of)
    data, held_out = load_dataset(recipe.dataset), load_dataset(recipe.dataset, "test")
    check_latents(recipe, data)
    tell = {s: partial(progress, s) if progress else None for s in ("autoencoder", "network")}
    examples: Examples = Pixels(torch.from_numpy(data.images))
    vae = maps = first = None
    if recipe.autoencoder is not None:
        if given is not None:
            vae = _autoencoder_of(given, str(recipe.starts_from or recipe.autoencoder_of), device)
        else:
            folder = checkpoints / "autoencoder"
            vae = train_autoencoder(recipe.autoencoder, data, folder, device, progress=tell["autoencoder"])
        # Latents of the weights that are stored, not of those before they were rounded.
        vae = vae.to(getattr(torch, recipe.weights)).to(torch.float32)
        scale = None if given is None else float(vae.config.scaling_factor)
        images = torch.from_numpy(data.images)
        examples = encode_once(vae, images, recipe.flip, device, scale)
        if recipe.condition is not None:
            condition = build_condition(recipe.condition, recipe.seed)
            side = recipe.network["sample_size"]
            maps = Maps(condition, images, _on_cpu(vae, device), side, recipe.holes, recipe.seed)
    if begun is not None:
        first = load_network(begun, "cpu").module
    labels = torch.from_numpy(data.labels)
    network, scheduler, condition_trained = train_network(
        recipe, examples, labels, checkpoints, device, progress=tell["network"], start=first, maps=maps
    )

    save_parts(out, recipe, network, scheduler)
    if condition_trained is not None:
        condition_trained.save(out / CONDITION)
    classifier = _classifier(recipe, data, out, device)
    extractor = ClassifierFeatures(classifier, f"fid-{recipe.dataset}")
    save_npz(out / "reference.npz", _moments(extractor, torch.from_numpy(data.images), device))
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "classifier_accuracy": round(accuracy(classifier, held_out, device), 4),
        "classifier_accuracy_on": "its own training set" if recipe.dataset == "digits" else "the test split",
        "reference_images": len(data.images),
        "trained_images": recipe.steps * recipe.batch,
        "date": datetime.now(UTC).date().isoformat(),
    }
    if begun is not None:
        figures["started_from"] = f"{recipe.starts_from} ({begun.hash})"
    if vae is not None:
        if recipe.autoencoder_of is not None and given is not None:
            figures["autoencoder_of"] = f"{recipe.autoencoder_of} ({given.hash})"
        figures |= _autoencoder_figures(recipe, vae, extractor, held_out, device)
    (out / "card.json").write_text(json.dumps(figures, indent=2) + "\n")
    (out / "README.md").write_text(model_card(recipe, figures, data))
    save_index(out, recipe, network, vae, scheduler)
    return figures


def save_parts(out: Path, recipe: TrainingRecipe, network: Any, scheduler: Any) -> None:
    """Write the network in the recipe's precision, its scheduler and the recipe."""
    if recipe.weights != "float32":
        network.to(getattr(torch, recipe.weights))
    network.save_pretrained(str(out / _network_folder(recipe)))
    scheduler.save_pretrained(str(out / "scheduler"))
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")


def save_index(out: Path, recipe: TrainingRecipe, network: Any, vae: Any, scheduler: Any, rounded: bool = True) -> None:
    """Write the autoencoder, `rounded` to the recipe's precision or as it is, and model_index.json.

    That is the last file: with it the directory is a model, without it an unfinished one.
    """
    if vae is not None:
        (vae.to(getattr(torch, recipe.weights)) if rounded else vae).save_pretrained(str(out / "vae"))
    index: dict[str, Any] = {"_class_name": _pipeline(recipe, vae is not None)}
    parts = {_network_folder(recipe): network, "vae": vae, "scheduler": scheduler}
    index |= {name: ["diffusers", type(part).__name__] for name, part in parts.items() if part is not None}
    if recipe.label_dropout is not None and recipe.transformer is None:
        (out / OWN_FILE).write_text(json.dumps({"null_label": recipe.null_label}) + "\n")
    aside = out / "model_index.json.tmp"
    aside.write_text(json.dumps(index, indent=2) + "\n")
    os.replace(aside, out / "model_index.json")


def _network_folder(recipe: TrainingRecipe) -> str:
    return "unet" if recipe.transformer is None else "transformer"


def _entry(recipe: TrainingRecipe, name: str | None, place: str | None = None) -> ModelFiles | None:
    """The entry of that name that the recipe starts from or takes its autoencoder of, elsewhere where `place` says so.

    None where it names none; ConfigurationError where it makes something else than the recipe's network.
    """
    if name is None:
        return None
    files = find_model(place or name)
    side = recipe.network["sample_size"]
    if files.shape != (recipe.channels, side, side) or (files.vae_config is None) != (recipe.autoencoder is None):
        raise ConfigurationError(f"{recipe.name} starts from {name}, which {files.root} is not: it makes {files.shape}")
    return files


def _autoencoder_of(files: ModelFiles, name: str, device: str) -> Any:
    """The entry's autoencoder, frozen; its configuration names the entry and not where it lay."""
    from diffusers import AutoencoderKL

    vae = load_part(AutoencoderKL, files.root / "vae", torch_dtype=torch.float32)
    # diffusers would store where on this machine it was loaded from.
    vae.register_to_config(_name_or_path=files.root.name)
    vae.register_to_config(_name_or_path=name)
    return vae.eval().requires_grad_(False).to(device)


def _on_cpu(vae: Any, device: str) -> Callable[[Tensor], Tensor]:
    """From images to scaled latents, both on the CPU."""
    encode = encoder_of(vae)
    return lambda images: encode(images.to(device)).cpu()


def _pipeline(recipe: TrainingRecipe, latent: bool) -> str:
    """The diffusers pipeline that samples the entry; DiffusionPipeline, which does not load, where there is none.

    There is none for EDM's scheduler, nor for a UNet with labels on latents. DiTPipeline calls a scheduler's
    `scale_model_input`, which FewStepScheduler has and diffusers' flow schedulers have not; its null label is
    ImageNet's, so that it cannot guide.
    """
    if latent:
        return "DiTPipeline" if recipe.transformer is not None else "DiffusionPipeline"
    return "DDPMPipeline" if recipe.objective == "epsilon" and recipe.transformer is None else "DiffusionPipeline"


def _classifier(recipe: TrainingRecipe, data: Dataset, out: Path, device: str) -> SmallClassifier:
    """The entry's classifier, saved in `out`: another entry's, so that figures compare, or one of its own."""
    if recipe.features_of is None:
        classifier = train_classifier(recipe, data, device)
        classifier.save(out / "classifier")
        return classifier
    shutil.copytree(find_model(recipe.features_of).root / "classifier", out / "classifier", dirs_exist_ok=True)
    return load_classifier(out / "classifier", device)


def _moments(extractor: FeatureExtractor, images: Tensor, device: str) -> Moments:
    return Moments.of(np.concatenate([extractor(images[i : i + 500].to(device)) for i in range(0, len(images), 500)]))


def _autoencoder_figures(
    recipe: TrainingRecipe, vae: Any, extractor: FeatureExtractor, held_out: Dataset, device: str
) -> dict[str, Any]:
    assert recipe.autoencoder is not None
    images = torch.from_numpy(held_out.images)
    back = reconstruct(vae, images, device)
    truth = FrechetReference.of(_moments(extractor, images, device))
    return {
        "autoencoder_parameters": sum(p.numel() for p in vae.parameters()),
        "autoencoder_trained_images": recipe.autoencoder.steps * recipe.autoencoder.batch,
        "scaling_factor": float(vae.config.scaling_factor),
        "reconstruction_rms": round(float((back - images).square().mean().sqrt()), 4),
        "reconstruction_fid": round(truth.distance(_moments(extractor, back, device)), 4),
        "reconstructed": "its own training set" if recipe.dataset == "digits" else "the test split",
    }
