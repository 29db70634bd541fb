"""`fewstep convert`: a published checkpoint as a diffusers directory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import AsJson, folder, into, print_json

NAME = "convert"


class Predicts(StrEnum):
    """What a network returns."""

    FLOW = "flow"
    EPSILON = "epsilon"


class Betas(StrEnum):
    """Noise of 1,000 steps."""

    LINEAR = "linear"
    COSINE = "cosine"


class Attention(StrEnum):
    """How query, key and value stand in one layer of guided-diffusion."""

    LEGACY = "legacy"
    NEW = "new"


class Stored(StrEnum):
    """Precision of what is written."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


def command(
    checkpoint: Annotated[Path, typer.Argument(help="a .safetensors file, or a .pth file that holds tensors alone")],
    out: Annotated[Path, into(help="model directory to write", check=folder)],
    predicts: Annotated[
        Predicts,
        typer.Option(help="flow: the velocity, told t in [0, 1]; epsilon: the noise, told whole steps of 1,000"),
    ] = Predicts.FLOW,
    vae: Annotated[Path | None, typer.Option(help="directory of the AutoencoderKL, for a network of latents")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="side of what the network makes, where its weights do not say it")
    ] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="heads of every attention layer")] = None,
    head_channels: Annotated[int | None, typer.Option(min=1, help="channels of a head, instead")] = None,
    attention: Annotated[
        Attention, typer.Option(help="guided-diffusion's use_new_attention_order: new")
    ] = Attention.LEGACY,
    betas: Annotated[Betas | None, typer.Option(help="of a network that predicts noise [default: linear]")] = None,
    weights: Annotated[Stored, typer.Option(help="what is written")] = Stored.FLOAT32,
    as_json: AsJson = False,
) -> None:
    """Turn a checkpoint of LFM, DiT, guided-diffusion, improved-diffusion or EDM's ADM into a model directory.

    The network is the same function; a flow that was told t in [0, 1] is told 1,000 t as diffusers' are.
    """
    if betas is not None and predicts is Predicts.FLOW:
        raise ConfigurationError(
            "--betas is for a network that predicts noise: leave it out, or give --predicts epsilon"
        )
    if heads is not None and head_channels is not None:
        raise ConfigurationError("--heads and --head-channels say the same: give one")
    from fewstep.tasks.models.published.convert import convert
    from fewstep.tasks.models.published.network import Asked

    asked = Asked(predicts.value, size, heads, head_channels, attention.value)
    made = convert(checkpoint, out, asked, vae, (betas or Betas.LINEAR).value, weights.value)
    if as_json:
        print_json({"folder": out, **made._asdict()})
    else:
        typer.echo(f"{out}: {made.network} of {made.parameters:,} parameters, from the layout of {made.layout}")
