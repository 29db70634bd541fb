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

from fewstep.errors import ConfigurationError, ModelError
from fewstep.tasks.faults import first_line
from fewstep.tasks.models.conditions import NO_NULL_LABEL, Conditions
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.finite import check_finite


class Network(Protocol):
    """One pretrained network."""

    module: torch.nn.Module

    def condition(self, conditions: Conditions, indices: Sequence[int]) -> Tensor | None:
        """The condition of the images `indices`."""

    def null(self, conditions: Conditions, count: int) -> Tensor | None:
        """The condition that asks for nothing, `count` times."""

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None, guidance: float = 1.0) -> Tensor:
        """The network's raw output without a variance; `guidance` is for networks that are told it."""


def _mean(output: Tensor, x: Tensor) -> Tensor:
    """The output without the variance that some networks predict in as many channels again."""
    return output[:, : x.shape[1]]


# Buffers that older checkpoints of text encoders hold and newer ones make anew.
REMADE = "position_ids"


def _loaded(loader: Any, folder: Path, **arguments: Any) -> Any:
    try:
        return loader.from_pretrained(str(folder), **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder} does not load: {first_line(error)}") from error


def load_part(loader: Any, folder: Path, **arguments: Any) -> Any:
    """`from_pretrained` of a part with weights; ModelError where they are not the part's, or not finite."""
    # Sizes that misfit are let through to be named below.
    part, said = _loaded(loader, folder, output_loading_info=True, ignore_mismatched_sizes=True, **arguments)
    for problem, what in (("missing_keys", "lack"), ("unexpected_keys", "have besides"), ("mismatched_keys", "misfit")):
        # What misfits comes with its sizes behind the name.
        named = (str(key[0] if isinstance(key, tuple | list) else key) for key in said.get(problem) or ())
        keys = sorted(key for key in named if not key.endswith(REMADE))
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(
                f"{folder}: the weights {what} {', '.join(keys[:3])}{more}: they are not those of its config.json"
            )
    check_finite(part, folder)
    return part


def frozen(module: Any, device: str) -> Any:
    """Evaluation mode, no gradients for its weights."""
    return module.eval().requires_grad_(False).to(device)


def load_module(loader: Any, files: ModelFiles, device: str) -> Any:
    """The model's own network, or the quantised one that takes its place."""
    if files.quantized is not None:
        from fewstep.tasks.quantization.storage import from_pretrained

        return from_pretrained(files.quantized, device).module
    how = files.loading
    part = load_part(loader, files.unet, torch_dtype=how.torch_dtype, low_cpu_mem_usage=False, **how.files)
    return how.prepared(frozen(part, device))


class LabelledUNet:
    """A UNet2DModel, with or without labels, and with or without a null label among them."""

    def __init__(self, files: ModelFiles, device: str) -> None:
        self.module = load_module(self._loader(), files, device)
        self.classes, self.null_label, self.device = files.classes, files.null_label, device

    def _loader(self) -> Any:
        from diffusers import UNet2DModel

        return UNet2DModel

    def condition(self, conditions: Conditions, indices: Sequence[int]) -> Tensor | None:
        """Labels (B,), None for a model without."""
        if self.classes is None:
            return None
        labels = [conditions.label(i, self.classes) for i in indices]
        if self.null_label is None and None in labels:
            raise ConfigurationError(NO_NULL_LABEL)
        return torch.tensor([self.null_label if v is None else v for v in labels], device=self.device)

    def null(self, conditions: Conditions, count: int) -> Tensor | None:
        """The null label."""
        return None if self.null_label is None else torch.full((count,), self.null_label, device=self.device)

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None, guidance: float = 1.0) -> Tensor:
        """The network's raw output."""
        output: Tensor = self.module(x, time, condition).sample
        return _mean(output, x)


class LabelledTransformer(LabelledUNet):
    """A DiTTransformer2DModel; the row behind its labels is the null one, as diffusers' DiTPipeline has it."""

    def _loader(self) -> Any:
        from diffusers import DiTTransformer2DModel

        return DiTTransformer2DModel

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None, guidance: float = 1.0) -> Tensor:
        """The network's raw output."""
        output: Tensor = self.module(x, time.expand(len(x)), condition).sample
        return _mean(output, x)


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
            tokenizer = _loaded(CLIPTokenizer, root / "tokenizer")
            how = self.files.loading
            encoder = load_part(CLIPTextModel, root / "text_encoder", dtype=how.torch_dtype, **how.files)
            self._encoder = tokenizer, frozen(encoder, self.device)
        return self._encoder

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None, guidance: float = 1.0) -> Tensor:
        """The network's raw output."""
        embedded = self._embedded_guidance(guidance, len(x)).to(x.dtype) if self.files.embeds_guidance else None
        told = None if condition is None else condition.to(x.dtype)
        output: Tensor = self.module(x, time, encoder_hidden_states=told, timestep_cond=embedded).sample
        return _mean(output, x)

    def _embedded_guidance(self, guidance: float, count: int) -> Tensor:
        """What stands for the scale in the network's time (B, D), by diffusers' own formula; 0 is no guidance."""
        from diffusers import StableDiffusionPipeline

        scales = torch.full((count,), guidance - 1.0)
        size = int(self.files.unet_config["time_cond_proj_dim"])
        embedded: Tensor = StableDiffusionPipeline.get_guidance_scale_embedding(None, scales, size)
        return embedded.to(self.device)


def load_network(files: ModelFiles, device: str) -> Network:
    """The network of a model; ModelError where it does not load."""
    if files.text:
        return TextUNet(files, device)
    return LabelledTransformer(files, device) if files.transformer else LabelledUNet(files, device)
