"""Scale a UNet's skip tensors without changing the network: forward pre-hooks on its up blocks.

diffusers' up blocks take the encoder's tensors from `res_hidden_states_tuple` and use them from the last to
the first; the first factor belongs to the first tensor that is concatenated. Source: USF's program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from fewstep.errors import ConfigurationError


def skip_count(unet: Any) -> int:
    """How many skip tensors a diffusers UNet concatenates; 0 for a network that shows none."""
    if not hasattr(unet, "up_blocks"):
        return 0
    return sum(len(block.resnets) for block in unet.up_blocks)


@contextmanager
def scaled_skips(unet: Any, factors: Sequence[float]) -> Iterator[None]:
    """Multiply each skip tensor by its factor for as long as the block lasts; no factors change nothing.

    Raises ConfigurationError where the number of factors is not the network's number of skips.
    """
    handles = attach_skips(unet, factors) if factors else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attach_skips(unet: Any, factors: Sequence[float]) -> list[Any]:
    """Attach the hooks for good; returns their handles, `remove()` takes one off."""
    if len(factors) != skip_count(unet):
        raise ConfigurationError(
            f"{len(factors)} skip coefficients, but the network concatenates {skip_count(unet)} skip tensors"
        )
    handles, first = [], 0
    for block in unet.up_blocks:
        own = tuple(factors[first : first + len(block.resnets)])
        first += len(own)
        handles.append(block.register_forward_pre_hook(_scaler(own), with_kwargs=True))
    return handles


def _scaler(factors: tuple[float, ...]) -> Any:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        def scaled(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(t * f for t, f in zip(tensors, reversed(factors), strict=True))

        if "res_hidden_states_tuple" in named:
            return arguments, named | {"res_hidden_states_tuple": scaled(named["res_hidden_states_tuple"])}
        return (arguments[0], scaled(arguments[1]), *arguments[2:]), named

    return hook
