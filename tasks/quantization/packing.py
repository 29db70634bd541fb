"""Codes of 2 to 8 bits as a stream of bytes, and back. The last byte is filled with zeros."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of any shape, whole numbers below 2^bits, as a uint8 tensor of ceil(bits n / 8) bytes."""
    flat = codes.detach().cpu().to(torch.uint8).numpy().ravel()
    if bits == 8:
        return torch.from_numpy(flat.copy())
    planes = np.unpackbits(flat[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(planes))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The uint8 codes of that shape, on the bytes' device."""
    count = math.prod(shape)
    if bits == 8:
        return packed[:count].clone().view(shape)
    if bits == 4:
        return torch.stack([packed >> 4, packed & 15], 1).flatten()[:count].view(shape)
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    planes = ((packed[:, None] >> shifts) & 1).flatten()[: bits * count].view(count, bits)
    return (planes << torch.arange(bits - 1, -1, -1, dtype=torch.uint8, device=packed.device)).sum(1).byte().view(shape)
