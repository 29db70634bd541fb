"""From a recipe to a zoo entry: network, scheduler, classifier, reference moments, recipe and model card."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.tasks.data import load_dataset
from fewstep.tasks.metrics.features import ClassifierFeatures
from fewstep.tasks.metrics.moments import Moments, save_npz
from fewstep.tasks.training.classifier import accuracy, train_classifier
from fewstep.tasks.training.diffusion import Progress, train_unet
from fewstep.tasks.training.recipe import TrainingRecipe


def train_entry(
    recipe: TrainingRecipe,
    out: Path,
    checkpoints: Path,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train everything a zoo entry holds into `out`; resumes from `checkpoints`. Returns the card's figures.

    Raises DataError where the data set is not installed.
    """
    data = load_dataset(recipe.dataset)
    network, scheduler = train_unet(recipe, data, checkpoints, device, progress=progress)
    classifier = train_classifier(recipe, data, device)
    held_out = load_dataset(recipe.dataset, "test")
    network.to(getattr(torch, recipe.weights)).save_pretrained(str(out / "unet"))
    scheduler.save_pretrained(str(out / "scheduler"))
    classifier.save(out / "classifier")
    extractor = ClassifierFeatures(classifier, f"fid-{recipe.dataset}")
    features = np.concatenate(
        [extractor(torch.from_numpy(data.images[i : i + 500]).to(device)) for i in range(0, len(data.images), 500)]
    )
    save_npz(out / "reference.npz", Moments.of(features))
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "classifier_accuracy": round(accuracy(classifier, held_out, device), 4),
        "classifier_accuracy_on": "its own training set" if recipe.dataset == "digits" else "the test split",
        "reference_images": len(data.images),
        "trained_images": recipe.steps * recipe.batch,
        "date": datetime.now(UTC).date().isoformat(),
    }
    (out / "card.json").write_text(json.dumps(figures, indent=2) + "\n")
    (out / "README.md").write_text(_card(recipe, figures, data.source, data.licence))
    # Last: with this file the directory is a model, without it an unfinished one.
    # diffusers has an unconditional pipeline for DDPM's scheduler, and none for EDM's.
    index = {
        "_class_name": "DDPMPipeline" if recipe.objective == "epsilon" else "DiffusionPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    aside = out / "model_index.json.tmp"
    aside.write_text(json.dumps(index, indent=2) + "\n")
    os.replace(aside, out / "model_index.json")
    return figures


def _card(recipe: TrainingRecipe, figures: dict[str, Any], source: str, licence: str) -> str:
    size = recipe.unet["sample_size"]
    return f"""# {recipe.name}

A diffusers UNet2DModel for {size}x{size} images: {_meaning(recipe)}.

| | |
|---|---|
| parameters | {figures["parameters"]:,} |
| trained on | {figures["trained_images"]:,} draws from {figures["reference_images"]:,} images |
| labels | {"none" if recipe.label_dropout is None else f"dropped with probability {recipe.label_dropout}"} |
| classifier accuracy | {figures["classifier_accuracy"]:.4f} on {figures["classifier_accuracy_on"]} |
| made | {figures["date"]}, by `fewstep train {recipe.name}` |

Data: {source}, licence {licence}. `reference.npz` holds the moments of the classifier's features on the
data; the Frechet distance in this space is labelled `fid-{recipe.dataset}` and compares with no other.
"""


def _meaning(recipe: TrainingRecipe) -> str:
    if recipe.objective == "edm":
        return f"EDM's preconditioned F, sigma {recipe.sigma_min:g} to {recipe.sigma_max:g}, data {recipe.sigma_data:g}"
    return f"it predicts the noise (1,000 steps, {recipe.beta_schedule} betas)"
