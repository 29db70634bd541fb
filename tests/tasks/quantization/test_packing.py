"""Codes survive packing, and take the bytes they should."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.tasks.quantization.packing import pack, unpack


@given(st.integers(2, 8), st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 1000))
def test_round_trip_and_size(bits: int, shape: list[int], seed: int) -> None:
    codes = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(bits * codes.numel() / 8),)
    found = unpack(packed, bits, tuple(shape))
    assert found.dtype == torch.uint8
    assert torch.equal(found, codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_extreme_codes(bits: int) -> None:
    codes = torch.tensor([0, 2**bits - 1, 0, 2**bits - 1, 2**bits - 1], dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits, (5,)), codes)


def test_a_view_is_packed_in_its_own_order() -> None:
    codes = torch.arange(12, dtype=torch.uint8).view(3, 4)
    assert torch.equal(unpack(pack(codes.T, 4), 4, (4, 3)), codes.T)
