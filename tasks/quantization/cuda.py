"""Linear layers in 8-bit integers on CUDA, by torchao.

torchao quantises weights for each output channel and activations for each row at run time, in linear layers
only: convolutions stay as they are. It takes the network as it was pretrained, not a calibrated one. A
convolutional UNet gains little from it; a network of attention blocks is what it is for.
"""

from __future__ import annotations

from torch import nn

from fewstep.errors import ConfigurationError, ModelError


def to_torchao(module: nn.Module, compiled: bool = True) -> nn.Module:
    """Quantise the linear layers of a network on CUDA in place, and compile it, which fuses the quantisation.

    Raises ConfigurationError where torchao is not installed, ModelError where there is no linear layer or the
    network is not on CUDA.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        raise ConfigurationError("integers on CUDA need torchao: pip install 'fewstep[cuda]'") from None
    if not any(type(layer) is nn.Linear for layer in module.modules()):
        raise ModelError(f"{type(module).__name__} has no linear layer, which is all that torchao quantises")
    device = next(module.parameters()).device
    if device.type != "cuda":
        raise ModelError(f"the network is on {device}: move it to CUDA, or run it in integers on the CPU by OpenVINO")
    quantize_(module.eval().requires_grad_(False), Int8DynamicActivationInt8WeightConfig())
    if compiled:
        module.compile()
    return module
