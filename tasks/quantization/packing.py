"""Codes of 2 to 8 bits as a stream of bytes, and back. The last byte is filled with zeros."""

from __future__ import annotations

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
    """The uint8 codes of that shape."""
    stream = packed.cpu().numpy()
    count = int(np.prod(shape, dtype=np.int64))
    if bits == 8:
        return torch.from_numpy(stream[:count].copy()).view(shape)
    planes = np.unpackbits(stream, count=bits * count).reshape(count, bits)
    wide = np.zeros((count, 8), np.uint8)
    wide[:, 8 - bits :] = planes
    return torch.from_numpy(np.packbits(wide, axis=1)[:, 0].copy()).view(shape)
