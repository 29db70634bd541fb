"""The untrained network that a recipe asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewstep.errors import ConfigurationError
from fewstep.tasks.faults import first_line
from fewstep.tasks.training.recipe import TrainingRecipe


def build_network(recipe: TrainingRecipe) -> Any:
    """A diffusers UNet2DModel or DiTTransformer2DModel with the weights of the recipe's seed.

    Both are called as `network(x, time, labels).sample`: x (B, C, H, W), time (B,), labels (B,) or None.
    """
    from diffusers import DiTTransformer2DModel, UNet2DModel

    torch.manual_seed(recipe.seed)
    if recipe.transformer is None:
        return UNet2DModel(**recipe.network)
    network = DiTTransformer2DModel(**recipe.network)
    start_at_zero(network)
    return network


@torch.no_grad()
def check_network(recipe: TrainingRecipe) -> None:
    """ConfigurationError where diffusers refuses the arguments, or the network makes something else than its input.

    Nothing is computed: there are no weights yet.
    """
    from diffusers import DiTTransformer2DModel, UNet2DModel

    made = UNet2DModel if recipe.transformer is None else DiTTransformer2DModel
    side = recipe.network["sample_size"]
    shape = (1, int(recipe.network["in_channels"]), side, side)
    label = None if recipe.null_label is None else torch.zeros(1, dtype=torch.long, device="meta")
    try:
        with torch.device("meta"):
            network = made(**recipe.network).eval()
            found = tuple(network(torch.zeros(shape), torch.zeros(1), label).sample.shape)
    # Layers that do not fit break wherever they first meet.
    except Exception as error:
        raise ConfigurationError(f"{made.__name__} refuses the recipe's arguments: {first_line(error)}") from error
    if found != shape:
        raise ConfigurationError(
            f"the network makes {found[1:]} of {shape[1:]}: leave its channels and size to the data"
        )


@torch.no_grad()
def start_at_zero(network: Any) -> None:
    """Make every block the identity and the output zero, as DiT starts (2212.09748, section 3.2, adaLN-Zero).

    diffusers leaves that to the one who trains. Its own label dropout is switched off too: it would draw from
    the global generator, in every block anew; the recipe's dropout is drawn with the batch.
    """
    for block in network.transformer_blocks:
        _zero(block.norm1.linear)
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    _zero(network.proj_out_1)
    _zero(network.proj_out_2)


def _zero(layer: nn.Linear) -> None:
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def start_from(network: Any, start: Any) -> None:
    """Give a network the weights of another that differs at most in having fewer input channels.

    The weights of further channels start at zero, so that the network first answers as the other does. Raises
    ConfigurationError where anything else differs.
    """
    ours, theirs = network.state_dict(), start.state_dict()
    first = "pos_embed.proj.weight" if "pos_embed.proj.weight" in ours else "conv_in.weight"
    if ours.keys() != theirs.keys():
        raise ConfigurationError("the network to start from is of another kind: give the entry that the recipe names")
    for name, value in ours.items():
        given = theirs[name]
        if name == first and given.shape[1] <= value.shape[1] and given[:, :0].shape == value[:, :0].shape:
            value.zero_()
            value[:, : given.shape[1]] = given
        elif given.shape == value.shape:
            value.copy_(given)
        else:
            raise ConfigurationError(
                f"the network to start from has {tuple(given.shape)} weights in {name}, this one {tuple(value.shape)}: "
                "give the entry that the recipe names"
            )
