"""Published networks by name, as arguments of diffusers' classes.

DiT: table 1 of 2212.09748, with patches of 2, 4 or 8. ADM: tables 4 and 11 of 2105.05233, for pixels; `ADM-latent` is
the smaller one that "Flow Matching in Latent Space" (2307.08698) trains on 32x32 latents.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fewstep.errors import ConfigurationError

# Layers, width, heads.
DIT = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
PATCHES = (2, 4, 8)


class Adm(NamedTuple):
    """A UNet: channels of its first level, their multiples, residual blocks a level, and sides with attention."""

    channels: int
    multiples: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    dropout: float = 0.0


ADM = {
    "ADM-latent": Adm(256, (1, 2, 2, 2), 2, (16, 8)),
    "ADM-32": Adm(128, (1, 2, 2, 2), 3, (16, 8), 0.3),
    "ADM-64": Adm(192, (1, 2, 3, 4), 3, (32, 16, 8), 0.1),
    "ADM-128": Adm(256, (1, 1, 2, 3, 4), 2, (32, 16, 8)),
    "ADM-256": Adm(256, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8)),
}
HEAD, GROUPS = 64, 32
PRESETS = (*(f"DiT-{size}/{patch}" for size in DIT for patch in PATCHES), *ADM)


def preset_network(name: str, side: int) -> tuple[str, dict[str, Any]]:
    """`transformer` or `unet`, and the arguments of a preset for inputs of a side; ConfigurationError if unknown."""
    if name not in PRESETS:
        raise ConfigurationError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    if name in ADM:
        return "unet", _adm(ADM[name], side)
    size, _, patch = name.removeprefix("DiT-").partition("/")
    layers, width, heads = DIT[size]
    return "transformer", {
        "patch_size": int(patch),
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
    }


def _adm(adm: Adm, side: int) -> dict[str, Any]:
    levels = len(adm.multiples)
    attends = [side >> level in adm.attention for level in range(levels)]
    return {
        "block_out_channels": tuple(adm.channels * multiple for multiple in adm.multiples),
        "layers_per_block": adm.blocks,
        "down_block_types": tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": HEAD,
        # Without it the attention in the middle has no norm.
        "attn_norm_num_groups": GROUPS,
        "dropout": adm.dropout,
    }
