"""Train the feature classifier of a zoo entry."""

from __future__ import annotations

import torch
from torch import nn

from fewstep.tasks.data import Dataset
from fewstep.tasks.models.classifier import SmallClassifier
from fewstep.tasks.training.recipe import TrainingRecipe


def train_classifier(recipe: TrainingRecipe, data: Dataset, device: str = "cpu") -> SmallClassifier:
    """Cross-entropy with random one-pixel shifts; returns the classifier in evaluation mode."""
    torch.manual_seed(recipe.seed)
    channels, size = data.images.shape[1], data.images.shape[2]
    width, dim = recipe.classifier_width, recipe.feature_dim
    model = SmallClassifier(channels, size, len(data.classes), width, dim).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=recipe.classifier_steps)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    for step in range(recipe.classifier_steps):
        rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        index = torch.randint(0, len(images), (recipe.batch,), generator=rng)
        shift = torch.randint(-1, 2, (2,), generator=rng).tolist()
        x = torch.roll(images[index], shift, dims=(2, 3)).to(device)
        loss = nn.functional.cross_entropy(model(x), labels[index].to(device), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def accuracy(model: SmallClassifier, data: Dataset, device: str = "cpu") -> float:
    """Share of images whose label is the most likely class."""
    right = 0
    for start in range(0, len(data.images), 500):
        x = torch.from_numpy(data.images[start : start + 500]).to(device)
        y = torch.from_numpy(data.labels[start : start + 500]).to(device)
        right += int((model(x).argmax(1) == y).sum())
    return right / len(data.images)
