"""From a recipe to a zoo entry: network, scheduler, classifier, reference moments, recipe and model card.

With latents the autoencoder is trained first, and the data are encoded by it once.
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

from fewstep.tasks.data import Dataset, load_dataset
from fewstep.tasks.metrics.features import ClassifierFeatures, FeatureExtractor
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.moments import Moments, save_npz
from fewstep.tasks.models.classifier import SmallClassifier, load_classifier
from fewstep.tasks.models.files import find_model
from fewstep.tasks.training.autoencoder import check_latents, encode_once, reconstruct, train_autoencoder
from fewstep.tasks.training.card import model_card
from fewstep.tasks.training.classifier import accuracy, train_classifier
from fewstep.tasks.training.diffusion import train_network
from fewstep.tasks.training.examples import Examples, Pixels
from fewstep.tasks.training.recipe import TrainingRecipe

# Stage ("autoencoder" or "network"), step, steps, mean loss.
StageProgress = Callable[[str, int, int, float], None]


def train_entry(
    recipe: TrainingRecipe,
    out: Path,
    checkpoints: Path,
    device: str = "cpu",
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Train everything a zoo entry holds into `out`; resumes from `checkpoints`. Returns the card's figures.

    Raises DataError where the data set is not installed, ConfigurationError where the networks do not fit it.
    """
    data, held_out = load_dataset(recipe.dataset), load_dataset(recipe.dataset, "test")
    check_latents(recipe, data)
    tell = {s: partial(progress, s) if progress else None for s in ("autoencoder", "network")}
    examples: Examples = Pixels(torch.from_numpy(data.images))
    vae = None
    if recipe.autoencoder is not None:
        folder = checkpoints / "autoencoder"
        vae = train_autoencoder(recipe.autoencoder, data, folder, device, progress=tell["autoencoder"])
        # Latents of the weights that are stored, not of those before they were rounded.
        vae = vae.to(getattr(torch, recipe.weights)).to(torch.float32)
        examples = encode_once(vae, torch.from_numpy(data.images), recipe.flip, device)
    labels = torch.from_numpy(data.labels)
    network, scheduler = train_network(recipe, examples, labels, checkpoints, device, progress=tell["network"])

    kind = "unet" if recipe.transformer is None else "transformer"
    network.to(getattr(torch, recipe.weights)).save_pretrained(str(out / kind))
    scheduler.save_pretrained(str(out / "scheduler"))
    classifier = _classifier(recipe, data, out, device)
    extractor = ClassifierFeatures(classifier, f"fid-{recipe.dataset}")
    save_npz(out / "reference.npz", _moments(extractor, torch.from_numpy(data.images), device))
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "classifier_accuracy": round(accuracy(classifier, held_out, device), 4),
        "classifier_accuracy_on": "its own training set" if recipe.dataset == "digits" else "the test split",
        "reference_images": len(data.images),
        "trained_images": recipe.steps * recipe.batch,
        "date": datetime.now(UTC).date().isoformat(),
    }
    if vae is not None:
        figures |= _autoencoder_figures(recipe, vae, extractor, held_out, device)
        vae.to(getattr(torch, recipe.weights)).save_pretrained(str(out / "vae"))
    (out / "card.json").write_text(json.dumps(figures, indent=2) + "\n")
    (out / "README.md").write_text(model_card(recipe, figures, data))
    # Last: with this file the directory is a model, without it an unfinished one.
    index: dict[str, Any] = {"_class_name": _pipeline(recipe)}
    parts = {kind: network, "vae": vae, "scheduler": scheduler}
    index |= {name: ["diffusers", type(part).__name__] for name, part in parts.items() if part is not None}
    aside = out / "model_index.json.tmp"
    aside.write_text(json.dumps(index, indent=2) + "\n")
    os.replace(aside, out / "model_index.json")
    return figures


def _pipeline(recipe: TrainingRecipe) -> str:
    """The diffusers pipeline that samples the entry; DiffusionPipeline, which does not load, where there is none.

    There is none for EDM's scheduler, nor for a UNet with labels on latents. DiTPipeline calls a scheduler's
    `scale_model_input`, which FewStepScheduler has and diffusers' flow schedulers have not; its null label is
    ImageNet's, so that it cannot guide.
    """
    if recipe.autoencoder is not None:
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
