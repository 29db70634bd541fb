"""Networks of different kinds behind one call: (x, time, conditions of the batch) -> raw output.

Shapes: x and output (B, C, H, W); time a scalar tensor. A condition is what one forward pass of the whole
batch needs besides: labels (B,) or token embeddings (B, L, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.errors import ModelError
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ModelFiles


class Network(Protocol):
    """One pretrained network."""

    module: torch.nn.Module

    def condition(self, conditions: Conditions, indices: Sequence[int]) -> Tensor | None:
        """The condition of the images `indices`."""

    def null(self, conditions: Conditions, count: int) -> Tensor | None:
        """The condition that asks for nothing, `count` times."""

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        """The network's raw output."""


def load_part(loader: Any, folder: Path, **arguments: Any) -> Any:
    """`from_pretrained` of a part of a model; ModelError where it does not load."""
    try:
        return loader.from_pretrained(str(folder), **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{folder}: the weights do not load: {first}") from error


def frozen(module: Any, device: str) -> Any:
    """Evaluation mode, no gradients for its weights."""
    return module.eval().requires_grad_(False).to(device)


def load_module(loader: Any, files: ModelFiles, device: str) -> Any:
    """The model's own network, or the quantised one that takes its place."""
    if files.quantized is not None:
        from fewstep.tasks.quantization.storage import from_pretrained

        return from_pretrained(files.quantized, device).module
    return frozen(load_part(loader, files.unet, torch_dtype=torch.float32, low_cpu_mem_usage=False), device)


class LabelledUNet:
    """A UNet2DModel, with or without labels; the last label is the null one."""

    def __init__(self, files: ModelFiles, device: str) -> None:
        self.module = load_module(self._loader(), files, device)
        self.null_label, self.device = files.null_label, device

    def _loader(self) -> Any:
        from diffusers import UNet2DModel

        return UNet2DModel

    def condition(self, conditions: Conditions, indices: Sequence[int]) -> Tensor | None:
        """Labels (B,), None for a model without."""
        if self.null_label is None:
            return None
        labels = [conditions.label(i, self.null_label) for i in indices]
        return torch.tensor([self.null_label if v is None else v for v in labels], device=self.device)

    def null(self, conditions: Conditions, count: int) -> Tensor | None:
        """The null label."""
        return None if self.null_label is None else torch.full((count,), self.null_label, device=self.device)

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        """The network's raw output."""
        output: Tensor = self.module(x, time, condition).sample
        return output


class LabelledTransformer(LabelledUNet):
    """A DiTTransformer2DModel; the row behind its labels is the null one, as diffusers' DiTPipeline has it."""

    def _loader(self) -> Any:
        from diffusers import DiTTransformer2DModel

        return DiTTransformer2DModel

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        """The network's raw output, without the variance that some predict besides."""
        output: Tensor = self.module(x, time.expand(len(x)), condition).sample
        return output[:, : x.shape[1]]


class TextUNet:
    """A UNet2DConditionModel with the text encoder of a StableDiffusionPipeline directory."""

    def __init__(self, files: ModelFiles, device: str) -> None:
        from diffusers import UNet2DConditionModel

        self.module = load_module(UNet2DConditionModel, files, device)
        self.files, self.device = files, device
        self._embedded: dict[str, Tensor] = {}
        self._encoder: tuple[Any, Any] | None = None

    def condition(self, conditions: Conditions, indices: Sequence[int]) -> Tensor | None:
        """Embeddings (B, L, D) of the images' prompts."""
        prompts = conditions.prompt_list
        return torch.stack([self._embed(prompts[i % len(prompts)]) for i in indices])

    def null(self, conditions: Conditions, count: int) -> Tensor | None:
        """The negative prompt's embedding."""
        return self._embed(conditions.negative_prompt).expand(count, -1, -1)

    @torch.inference_mode()
    def _embed(self, prompt: str) -> Tensor:
        """Last hidden state (L, D) of one prompt, padded and cut to the encoder's length as diffusers does."""
        if prompt not in self._embedded:
            tokenizer, encoder = self._text_encoder()
            length = tokenizer.model_max_length
            tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            mask = tokens.attention_mask.to(self.device) if encoder.config.to_dict().get("use_attention_mask") else None
            output = encoder(tokens.input_ids.to(self.device), attention_mask=mask)
            self._embedded[prompt] = output[0][0].to(torch.float32)
        return self._embedded[prompt]

    def _text_encoder(self) -> tuple[Any, Any]:
        from transformers import CLIPTextModel, CLIPTokenizer

        if self._encoder is None:
            root = self.files.root
            tokenizer = load_part(CLIPTokenizer, root / "tokenizer")
            encoder = load_part(CLIPTextModel, root / "text_encoder", dtype=torch.float32)
            self._encoder = tokenizer, frozen(encoder, self.device)
        return self._encoder

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        """The network's raw output."""
        output: Tensor = self.module(x, time, encoder_hidden_states=condition).sample
        return output


def load_network(files: ModelFiles, device: str) -> Network:
    """The network of a model; ModelError where it does not load."""
    if files.text:
        return TextUNet(files, device)
    return LabelledTransformer(files, device) if files.transformer else LabelledUNet(files, device)
