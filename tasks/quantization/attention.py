"""Quantise the two products inside diffusers' `Attention`: q k and softmax(q k) v.

While anything is quantised or observed, the module's processor is the one that forms the scores explicitly:
queries, keys and probabilities are quantised where the scores are made, values where they leave their projection.
Switched off, the module runs on the processor it came with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from fewstep.errors import ModelError
from fewstep.tasks.quantization.activations import ActivationQuantizer

OPERANDS = ("query", "key", "probabilities", "value")


class SwitchedProcessor:
    """Runs `plain`, or the explicit processor where one of the quantisers is not off."""

    def __init__(self, plain: Any, quantizers: Mapping[str, ActivationQuantizer]) -> None:
        self.plain, self.explicit, self.quantizers = plain, AttnProcessor(), dict(quantizers)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """What diffusers' processors do."""
        off = all(quantizer.mode == "off" for quantizer in self.quantizers.values())
        processor = self.plain if off else self.explicit
        output: Tensor = processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return output


def quantize_products(attention: Attention, make: Callable[[], ActivationQuantizer]) -> dict[str, ActivationQuantizer]:
    """Attach quantisers by operand; ModelError for a kind of attention that is not understood."""
    normed = getattr(attention, "norm_q", None) is not None or getattr(attention, "norm_k", None) is not None
    if normed or not isinstance(attention.processor, AttnProcessor | AttnProcessor2_0):
        raise ModelError(
            f"attention by {type(attention.processor).__name__}{' with normed queries' * normed} cannot have its "
            "products quantised: "
            "choose the coverage `paper`, which leaves them out"
        )
    found = {operand: make() for operand in OPERANDS}
    attention.quantizers = nn.ModuleDict(found)
    scores = attention.get_attention_scores
    attention.set_processor(SwitchedProcessor(attention.processor, found))

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
