"""The model card of a zoo entry."""

from __future__ import annotations

from typing import Any

from fewstep.tasks.data import Dataset
from fewstep.tasks.training.recipe import TrainingRecipe


def model_card(recipe: TrainingRecipe, figures: dict[str, Any], data: Dataset) -> str:
    """README.md of an entry: what the network makes, how it was trained, what its figures compare with."""
    size = data.images.shape[2]
    kind = "UNet2DModel" if recipe.transformer is None else "DiTTransformer2DModel"
    return f"""# {recipe.name}

A diffusers {kind} for {size}x{size} images: {_meaning(recipe)}.

| | |
|---|---|
| parameters | {figures["parameters"]:,} |
| trained on | {figures["trained_images"]:,} draws from {figures["reference_images"]:,} images |
| labels | {"none" if recipe.label_dropout is None else f"dropped with probability {recipe.label_dropout}"} |
| classifier accuracy | {figures["classifier_accuracy"]:.4f} on {figures["classifier_accuracy_on"]} |
{_condition(recipe, figures)}| made | {figures["date"]}, by `{recipe.command}` |
{_latents(recipe, figures)}
Data: {data.source}, licence {data.licence}. `reference.npz` holds the moments of the classifier's features on the
data; the Frechet distance in this space is labelled `fid-{recipe.dataset}` and compares with no other.
"""


def own_card(recipe: TrainingRecipe, figures: dict[str, Any]) -> str:
    """README.md of a model of one's own data."""
    made = "UNet2DModel" if recipe.transformer is None else "DiTTransformer2DModel"
    dropout = recipe.label_dropout
    labels = "none" if dropout is None else f"{recipe.classes}, dropped with probability {dropout}"
    return f"""# {recipe.name}

A diffusers {made}{f" ({recipe.preset})" if recipe.preset else ""}: {_meaning(recipe)}.

| | |
|---|---|
| parameters | {figures["parameters"]:,} |
| images | {figures["images"]:,}, {figures["size"]} pixels a side, content {figures["content"]} |
| resized | {figures["resized"]} |
| trained on | {figures["trained_images"]:,} draws of them |
| labels | {labels} |
| made | {figures["date"]} |

Measure it with `--features inception --reference` and the place of the images.
"""


def _condition(recipe: TrainingRecipe, figures: dict[str, Any]) -> str:
    """Rows on where the network started and what it is shown."""
    rows = ""
    if "started_from" in figures:
        rows += f"| started from | {figures['started_from']}, whose autoencoder it keeps |\n"
    if recipe.condition is not None:
        shown = {
            "inpaint": "latents of the image without its hole, and the hole's share",
            "layout": f"an embedded layout of {recipe.condition.classes} classes, trained with the network",
        }
        rows += f"| shown, in the last {recipe.condition.channels} input channels | {shown[recipe.condition.kind]} |\n"
    return rows


def _latents(recipe: TrainingRecipe, figures: dict[str, Any]) -> str:
    if recipe.autoencoder is None:
        return ""
    channels, side = recipe.channels, recipe.network["sample_size"]
    return f"""
It works on {channels}x{side}x{side} latents of the AutoencoderKL in `vae/`, which neither pads nor crops: an image's
side is the latents' times two for each halving. `scaling_factor` in its config gives them unit variance.

| autoencoder | |
|---|---|
| parameters | {figures["autoencoder_parameters"]:,} |
{_taken(figures)}| trained on | {figures["autoencoder_trained_images"]:,} draws |
| scaling factor | {figures["scaling_factor"]:.4f} |
| reconstruction, root mean square in [-1, 1] | {figures["reconstruction_rms"]:.4f} on {figures["reconstructed"]} |
| fid-{recipe.dataset} of the reconstructions, against the same images | {figures["reconstruction_fid"]:.3f} |
"""


def _taken(figures: dict[str, Any]) -> str:
    return f"| taken from | {figures['autoencoder_of']} |\n" if "autoencoder_of" in figures else ""


def _meaning(recipe: TrainingRecipe) -> str:
    if recipe.objective == "edm":
        return f"EDM's preconditioned F, sigma {recipe.sigma_min:g} to {recipe.sigma_max:g}, data {recipe.sigma_data:g}"
    if recipe.objective == "flow":
        return "it predicts the velocity noise - data of straight paths, and is told 1,000 t"
    return f"it predicts the noise (1,000 steps, {recipe.beta_schedule} betas)"
