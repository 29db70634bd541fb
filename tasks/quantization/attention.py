"""Quantise the two products inside diffusers' `Attention`: q k and softmax(q k) v.

The module's processor becomes the one that forms the scores explicitly; queries, keys and probabilities are
quantised where the scores are made, values where they leave their projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from fewstep.errors import ModelError
from fewstep.tasks.quantization.activations import ActivationQuantizer

OPERANDS = ("query", "key", "probabilities", "value")


def quantize_products(attention: Attention, make: Callable[[], ActivationQuantizer]) -> dict[str, ActivationQuantizer]:
    """Attach quantisers by operand; ModelError for a kind of attention that is not understood."""
    if not isinstance(attention.processor, AttnProcessor | AttnProcessor2_0):
        raise ModelError(
            f"attention by {type(attention.processor).__name__} cannot have its products quantised: "
            "choose the coverage `paper`, which leaves them out"
        )
    found = {operand: make() for operand in OPERANDS}
    attention.quantizers = nn.ModuleDict(found)
    scores = attention.get_attention_scores
    attention.set_processor(AttnProcessor())

    def quantized_scores(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        probabilities: Tensor = scores(found["query"](query), found["key"](key), mask)
        quantized: Tensor = found["probabilities"](probabilities)
        return quantized

    attention.get_attention_scores = quantized_scores

    def quantize_output(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        quantized: Tensor = found["value"](output)
        return quantized

    attention.to_v.register_forward_hook(quantize_output)
    return found
