"""Untrained networks of a few thousand weights, and calibration data for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

CLASSES = 5
TIMES = (0.0, 250.0, 500.0, 999.0)


def _unet(**settings: Any) -> nn.Module:
    """8x8 images of 3 channels, an attention block at each side, resampling, skips, labels."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        **{
            "sample_size": 8,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            "num_class_embeds": CLASSES,
            **settings,
        }
    )


def _text_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        norm_num_groups=4,
        attention_head_dim=2,
    )


def _dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        activation_fn="gelu-approximate",
    )
    # Beside labels this large the timestep, which the first initialisation almost ignores, would be lost.
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
    return network


KINDS: dict[str, Callable[..., nn.Module]] = {"unet": _unet, "text": _text_unet, "dit": _dit}


@pytest.fixture(scope="session")
def make() -> Callable[..., nn.Module]:
    """`make(kind, **settings)`: a network, the same for the same arguments."""

    def network(kind: str = "unet", **settings: Any) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return KINDS[kind](**settings).eval().requires_grad_(False)

    return network


@pytest.fixture(scope="session")
def inputs() -> Callable[..., dict[str, Tensor]]:
    """`inputs(kind, count)`: count images at each of the four timesteps, timesteps outermost."""

    def data(kind: str = "unet", count: int = 4) -> dict[str, Tensor]:
        rng, rows = torch.Generator().manual_seed(2), count * len(TIMES)
        found = {
            "x": torch.randn(rows, 3, 8, 8, generator=rng),
            "time": torch.tensor(TIMES).repeat_interleave(count),
        }
        if kind == "text":
            found["condition"] = torch.randn(rows, 6, 12, generator=rng)
        else:
            found["labels"] = torch.arange(rows) % CLASSES
        return found

    return data


@pytest.fixture(scope="session")
def traces() -> dict[str, Any]:
    """Traces by kind of network. Making one takes longer than all the rest of most tests."""
    return {}


@pytest.fixture
def wrapped(
    make: Callable[..., nn.Module],
    inputs: Callable[..., dict[str, Tensor]],
    traces: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    """`wrapped(name, kind, settings, **changes)`: network of a named config, switched off, and its untouched twin."""
    from fewstep.search_spaces.quantization import named
    from fewstep.tasks.quantization import network as module
    from fewstep.tasks.quantization.network import QuantizedNetwork

    trace = module.trace

    def build(name: str, kind: str = "unet", settings: dict[str, Any] | None = None, **changes: Any) -> Any:
        settings = settings or {}
        changes = {"solver": "adaround"} | changes
        # The example's batch differs from every other number of rows in these tests.
        example = {key: value[:3] for key, value in inputs(kind).items()}
        key = f"{kind} {settings}"

        def traced_once(*arguments: Any) -> Any:
            if key not in traces:
                traces[key] = trace(*arguments)
            return traces[key]

        # Networks of equal arguments are equal down to their weights, so that one trace fits them all.
        monkeypatch.setattr(module, "trace", traced_once)
        network = QuantizedNetwork.wrap(make(kind, **settings), named(name, **changes), example)
        monkeypatch.setattr(module, "trace", trace)
        return network, make(kind, **settings)

    return build


@pytest.fixture
def calibrated(wrapped: Callable[..., Any], inputs: Callable[..., dict[str, Tensor]]) -> Callable[..., Any]:
    """As `wrapped`, calibrated and switched on; few iterations unless the changes say otherwise."""
    from fewstep.tasks.quantization.calibration import Calibration

    def build(name: str, kind: str = "unet", settings: dict[str, Any] | None = None, **changes: Any) -> Any:
        network, twin = wrapped(name, kind, settings, **{"iterations": 5, "tiar_iterations": 20, "batch": 8} | changes)
        Calibration(network, inputs(kind)).run()
        return network, twin

    return build
