"""A published checkpoint as a diffusers directory, which everything here and diffusers itself load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from fewstep.errors import ModelError
from fewstep.tasks.models.model_files import OWN_FILE
from fewstep.tasks.models.published.dit import convert_dit, is_dit
from fewstep.tasks.models.published.edm import convert_edm, is_edm
from fewstep.tasks.models.published.guided import convert_guided, is_guided
from fewstep.tasks.models.published.network import Asked, Converted
from fewstep.tasks.models.published.weights import Weights, read_weights

Layout = tuple[Callable[[Weights], bool], Callable[[Weights, Asked], Converted]]
LAYOUTS: dict[str, Layout] = {
    "DiT": (is_dit, convert_dit),
    "guided-diffusion": (is_guided, convert_guided),
    "EDM": (is_edm, convert_edm),
}
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


class Made(NamedTuple):
    """The layout that a checkpoint had, its network in diffusers' terms, and the parameters that it has there."""

    layout: str
    network: str
    parameters: int


def convert(
    checkpoint: Path,
    out: Path,
    asked: Asked,
    vae: Path | None = None,
    betas: Literal["linear", "cosine"] = "linear",
    weights: Literal["float32", "float16"] = "float32",
) -> Made:
    """Write the model that a checkpoint is, with a `vae` directory where it works on latents.

    A flow is told 1000 t, as diffusers' are. `betas` are those of a network that predicts noise, on 1,000 steps.
    ModelError where the file is refused, its layout is not known, or diffusers' classes cannot be its network.
    """
    from diffusers import DiTTransformer2DModel, UNet2DModel

    held = read_weights(checkpoint)
    layout = next((name for name, (fits, _) in LAYOUTS.items() if fits(held)), None)
    if layout is None:
        first = ", ".join(held.names()[:3])
        raise ModelError(f"{checkpoint} is of no known layout ({', '.join(LAYOUTS)}): its tensors are {first}, ...")
    found = LAYOUTS[layout][1](held, asked)
    held.finished()
    made = UNet2DModel if found.kind == "unet" else DiTTransformer2DModel
    with torch.device("meta"):
        network = made(**found.arguments)
    network = _filled(made, network, found, held.place)
    decoder = _decoder(vae, found) if vae is not None else None
    network.to(getattr(torch, weights)).save_pretrained(str(out / found.kind))
    scheduler = _scheduler(asked, betas, found)
    scheduler.save_pretrained(str(out / "scheduler"))
    if decoder is not None:
        decoder.save_pretrained(str(out / "vae"))
    if found.null_label:
        (out / OWN_FILE).write_text(json.dumps({"null_label": found.arguments["num_class_embeds"] - 1}) + "\n")
    parts = {found.kind: network, "vae": decoder, "scheduler": scheduler}
    index: dict[str, Any] = {"_class_name": _pipeline(found, asked, decoder is not None)}
    index |= {name: ["diffusers", type(part).__name__] for name, part in parts.items() if part is not None}
    aside = out / "model_index.json.tmp"
    aside.write_text(json.dumps(index, indent=2) + "\n")
    os.replace(aside, out / "model_index.json")
    return Made(layout, made.__name__, sum(p.numel() for p in network.parameters()))


def _filled(made: Any, empty: Any, found: Converted, place: str) -> Any:
    """The network with its weights; ModelError where they are not all there, or of another size."""
    expected = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in found.weights.items()}
    if strays := sorted(expected.items() ^ given.items()):
        name = strays[0][0]
        raise ModelError(
            f"{place} is not the {made.__name__} that its sizes tell of: {name} is {given.get(name, 'missing')} "
            f"and not {expected.get(name, 'there at all')}"
        )
    network = made(**found.arguments)
    network.load_state_dict(found.weights)
    return network.eval()


def _decoder(folder: Path, found: Converted) -> Any:
    from diffusers import AutoencoderKL

    from fewstep.tasks.models.networks import load_part

    vae = load_part(AutoencoderKL, folder, torch_dtype=torch.float32)
    channels = found.arguments["in_channels"]
    if vae.config.latent_channels != channels:
        raise ModelError(
            f"{folder} makes latents of {vae.config.latent_channels} channels, the network takes {channels}"
        )
    return vae


def _scheduler(asked: Asked, betas: str, found: Converted) -> Any:
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    if asked.predicts == "flow":
        return FlowMatchEulerDiscreteScheduler()
    learned = found.arguments["out_channels"] == 2 * found.arguments["in_channels"]
    return DDPMScheduler(
        beta_schedule=BETAS[betas], variance_type="learned_range" if learned else "fixed_small", clip_sample=False
    )


def _pipeline(found: Converted, asked: Asked, latent: bool) -> str:
    """The pipeline that samples it; DiffusionPipeline, which does not load, where diffusers has none."""
    if found.kind == "transformer":
        return "DiTPipeline" if latent else "DiffusionPipeline"
    plain = asked.predicts == "epsilon" and not latent and found.arguments["num_class_embeds"] is None
    return "DDPMPipeline" if plain else "DiffusionPipeline"
