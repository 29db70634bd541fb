"""Train the checkpoints: `python -m benchmarks.unseen.models FOLDER [NAME ...]`; killed, it goes on.

Each FOLDER/NAME holds `model/` (a diffusers directory), `features/` (the classifier that a user would bring),
`reference/` (images) and `judge/` (another network, which only the report's second metric sees).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.unseen.data import DATA
from fewstep.tasks.data import Dataset
from fewstep.tasks.models.files import OWN_FILE
from fewstep.tasks.training.classifier import train_classifier
from fewstep.tasks.training.diffusion import train_network
from fewstep.tasks.training.examples import Pixels
from fewstep.tasks.training.judge import JudgeRecipe, fit
from fewstep.tasks.training.recipe import TrainingRecipe

REFERENCE_IMAGES = 10_000


def _unet(size: int, channels: int, widths: tuple[int, ...], attention: bool, classes: int | None) -> dict[str, Any]:
    count = len(widths)
    kind = "AttnDownBlock2D" if attention else "DownBlock2D"
    return {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": widths,
        "down_block_types": ("DownBlock2D",) * (count - 1) + (kind,),
        "up_block_types": (kind.replace("Down", "Up"),) + ("UpBlock2D",) * (count - 1),
        "norm_num_groups": 8,
        "attention_head_dim": 16,
        "num_class_embeds": classes,
    }


def _recipe(name: str, unet: dict[str, Any], **changed: Any) -> TrainingRecipe:
    common = {"steps": 8_000, "batch": 128, "learning_rate": 1.5e-3, "warmup": 300, "ema": 0.9995, "seed": 7}
    features = {"classifier_steps": 4_000, "feature_dim": 48}
    return TrainingRecipe.model_validate({"name": name, "dataset": name, "unet": unet} | common | features | changed)


RECIPES = {
    # Labels, cosine betas.
    "fashion": _recipe(
        "fashion", _unet(14, 1, (16, 32), True, 11), beta_schedule="squaredcos_cap_v2", label_dropout=0.1
    ),
    # No labels, preconditioned.
    "glyphs": _recipe(
        "glyphs", _unet(12, 1, (16, 32), False, None), objective="edm", sigma_data=0.6, sigma_log_std=1.4
    ),
    # No labels, colour, straight paths.
    "patches": _recipe("patches", _unet(12, 3, (16, 32), False, None), objective="flow"),
}


def train(name: str, root: Path) -> None:
    """Make FOLDER/NAME; what is there is kept."""
    recipe, folder = RECIPES[name], root / name
    data, model = DATA[name]("train"), folder / "model"

    def tell(step: int, steps: int, loss: float) -> None:
        print(f"{name} {step}/{steps} {loss:.4f}", flush=True)

    if not (model / "model_index.json").is_file():
        examples, labels = Pixels(torch.from_numpy(data.images)), torch.from_numpy(data.labels)
        trained = train_network(recipe, examples, labels, folder / "checkpoint", progress=tell)
        trained.network.save_pretrained(str(model / "unet"))
        trained.scheduler.save_pretrained(str(model / "scheduler"))
        if recipe.label_dropout is not None:
            (model / OWN_FILE).write_text(json.dumps({"null_label": recipe.null_label}) + "\n")
        kind = "DDPMPipeline" if recipe.objective == "epsilon" else "DiffusionPipeline"
        parts = {"unet": trained.network, "scheduler": trained.scheduler}
        index = {"_class_name": kind, **{n: ["diffusers", type(p).__name__] for n, p in parts.items()}}
        (model / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    if not (folder / "features" / "config.json").is_file():
        train_classifier(recipe, data).save(folder / "features")
        print(f"{name} features", flush=True)
    if not (folder / "judge" / "config.json").is_file():
        plan = JudgeRecipe(name=name, dataset=name, steps=3_000, shift=1, flip=False)
        fit(plan, data).save(folder / "judge")
        print(f"{name} judge", flush=True)
    _write_images(data, folder / "reference")


def _write_images(data: Dataset, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(data.images[:REFERENCE_IMAGES]):
        pixels = ((image + 1) * 127.5).round().clip(0, 255).astype("uint8")
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(folder / f"{i:05}.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[2:] or list(RECIPES):
        train(chosen, Path(sys.argv[1]))
