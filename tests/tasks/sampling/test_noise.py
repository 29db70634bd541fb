"""Noise is a pure function of (seed, index, stream)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.tasks.sampling.noise import image_noise, starting_noise

SHAPE = (3, 4, 4)
WORDS = st.integers(0, 2**64 - 1)


@given(WORDS, WORDS, st.integers(0, 2**32))
@settings(deadline=None)
def test_pure_function(seed: int, index: int, stream: int) -> None:
    one, two = (image_noise(seed, index, SHAPE, stream) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert (one.shape, one.dtype) == (SHAPE, np.float32)
    assert np.all(np.isfinite(one))


@given(st.integers(0, 100), st.lists(st.integers(1, 7), min_size=1, max_size=6))
@settings(deadline=None)
def test_any_batching_gives_equal_bits(start: int, sizes: list[int]) -> None:
    whole = starting_noise(5, start, sum(sizes), SHAPE)
    at, parts = start, []
    for size in sizes:
        parts.append(starting_noise(5, at, size, SHAPE))
        at += size
    assert torch.equal(torch.cat(parts), whole)
    assert whole.dtype == torch.float32
    for i in range(len(whole)):
        assert whole[i].numpy().tobytes() == image_noise(5, start + i, SHAPE).tobytes()


def test_other_randomness_changes_nothing() -> None:
    expected = starting_noise(1, 2, 3, SHAPE)
    state = torch.get_rng_state()
    torch.manual_seed(77)
    np.random.seed(77)
    before = torch.get_rng_state()
    assert torch.equal(starting_noise(1, 2, 3, SHAPE), expected)
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)


@given(st.tuples(WORDS, WORDS, st.integers(0, 9)), st.tuples(WORDS, WORDS, st.integers(0, 9)))
@settings(deadline=None)
def test_other_seed_index_or_stream_gives_other_noise(a: tuple[int, int, int], b: tuple[int, int, int]) -> None:
    if a != b:
        one, two = (image_noise(seed, index, SHAPE, stream) for seed, index, stream in (a, b))
        assert np.count_nonzero(one == two) <= 1  # float32 has coincidences


def test_neighbours_share_nothing() -> None:
    # Counter-based streams must not overlap: no value of one appears in another, at any offset.
    seen: set[float] = set()
    total = 0
    for seed in range(4):
        for index in range(8):
            for stream in range(3):
                values = image_noise(seed, index, (1, 8, 8), stream).ravel()
                seen.update(values.tolist())
                total += len(values)
    # float32 has coincidences; shared streams would lose whole images.
    assert len(seen) > total - 16
    assert not np.array_equal(image_noise(1, 2, SHAPE), image_noise(2, 1, SHAPE))


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (1, 0), (2**63, 1)])
def test_standard_normal(seed: int, stream: int) -> None:
    values = np.stack([image_noise(seed, i, (1, 16, 16), stream) for i in range(400)]).ravel()
    n = len(values)  # 102,400
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((values**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / n)
    # Neighbouring images and pixels are not correlated.
    images = values.reshape(400, -1)
    assert abs((images[1:] * images[:-1]).mean()) < 5 / np.sqrt(n)
    assert abs((images[:, 1:] * images[:, :-1]).mean()) < 5 / np.sqrt(n)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1), (2**64, 0)])
def test_words_that_do_not_fit_are_refused(seed: int, index: int) -> None:
    with pytest.raises(OverflowError):
        image_noise(seed, index, SHAPE)
