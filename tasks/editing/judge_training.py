"""A judge that is trained because it was asked for: a small classifier of the images that boundaries and a search see.

It differs from the classifier beside a model in width, features and seed, sees none of the report's images, and is
kept by content, with its accuracy.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fewstep.files import read_json
from fewstep.tasks.data import Dataset
from fewstep.tasks.editing.judge_kinds import ClassifierScores
from fewstep.tasks.image_folder import tell
from fewstep.tasks.models.classifier import load_classifier
from fewstep.tasks.training.classifier import accuracy, train_classifier
from fewstep.tasks.training.recipe import TrainingRecipe

WIDTH, FEATURES, STEPS, BATCH, SEED = 24, 48, 2500, 128, 1009
ACCURACY_FILE = "accuracy.json"


def trained_scores(seen: Dataset, unseen: Dataset, cache: Path, device: str, steps: int = STEPS) -> ClassifierScores:
    """The classifier of a data set, from the cache or trained now on `seen`; its accuracy is that on `unseen`."""
    digest = hashlib.sha256(seen.images.tobytes() + seen.labels.tobytes())
    digest.update(f"{WIDTH} {FEATURES} {steps} {BATCH} {SEED}".encode())
    folder = cache / f"judge-{seen.name}-{digest.hexdigest()[:16]}"
    if (folder / ACCURACY_FILE).is_file():
        return ClassifierScores(load_classifier(folder, device), folder.name, float(read_json(folder / ACCURACY_FILE)))
    tell(f"judge: a small classifier is trained on {len(seen.labels):,} images of {seen.name} for {steps:,} steps")
    recipe = TrainingRecipe(
        name="judge",
        dataset=seen.name,
        unet={},
        steps=1,
        batch=BATCH,
        seed=SEED,
        classifier_width=WIDTH,
        classifier_steps=steps,
        feature_dim=FEATURES,
    )
    network = train_classifier(recipe, seen, device)
    network.save(folder)
    found = accuracy(network, unseen, device)
    # Last: without it the folder is not finished.
    (folder / ACCURACY_FILE).write_text(json.dumps(found) + "\n")
    return ClassifierScores(network, folder.name, found)
