"""Measures, radii, attributes: their fixed points and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.editing.attributes import load_part, parse_attribute, side
from fewstep.tasks.editing.bench import Bench
from fewstep.tasks.editing.measures import SurroundingIdentities, Surroundings, outside_region, proportion
from fewstep.tasks.editing.radius import Radius, critical_step, mean_radius, readable_step
from fewstep.tasks.models.noise_schedule import DiscreteVP

NOISE = DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))


class Flat:
    """Features that are the pixels."""

    name, dim, hash = "flat", 16, "0"

    def __call__(self, images: Tensor) -> np.ndarray:
        return images.flatten(1).double().numpy()


def scene() -> tuple[Tensor, Surroundings]:
    rng = torch.Generator().manual_seed(0)
    positive, negative = (0.2 * torch.randn(30, 1, 4, 4, generator=rng) for _ in range(2))
    positive[:, :, :2] += 1.0
    return negative, Surroundings.of(positive, negative, Flat())


def test_identity_is_1_for_the_untouched_and_0_for_unrelated_images() -> None:
    originals, surroundings = scene()
    identities = SurroundingIdentities(originals, surroundings)
    assert np.array_equal(identities(originals).both, np.ones(30))
    unrelated = identities(surroundings.unrelated)
    assert unrelated.pixels.mean() == pytest.approx(0, abs=1e-9)
    assert unrelated.features.mean() == pytest.approx(0, abs=1e-9)


def test_the_attribute_itself_costs_no_identity() -> None:
    originals, surroundings = scene()
    assert bool(surroundings.outside[2:].all())
    assert not bool(surroundings.outside[:2].any())
    changed = originals + torch.from_numpy(surroundings.direction.astype(np.float32)).view(1, 1, 4, 4)
    found = SurroundingIdentities(originals, surroundings)(changed)
    assert np.allclose(found.features, 1, atol=1e-6)
    shown = originals.clone()
    shown[:, :, :2] += 1.0
    assert np.array_equal(SurroundingIdentities(originals, surroundings)(shown).pixels, np.ones(30))


def test_half_of_the_pixels_are_outside() -> None:
    rng = torch.Generator().manual_seed(1)
    region = outside_region(torch.randn(9, 3, 6, 6, generator=rng), torch.randn(9, 3, 6, 6, generator=rng))
    assert (int(region.sum()), region.shape) == (18, (6, 6))


@settings(max_examples=30, deadline=None)
@given(hits=st.integers(0, 50))
def test_shares_have_wilsons_interval(hits: int) -> None:
    found = proportion([True] * hits + [False] * (50 - hits))
    exact = binomtest(hits, 50).proportion_ci(method="wilson")
    assert found == pytest.approx((hits / 50, exact.low, exact.high), abs=1e-9)


def radii(sampled: list[float], inverted: list[float]) -> list[Radius]:
    """From noisiest to cleanest."""
    return [Radius(-5.0 + i, 900.0 - 100 * i, s, v) for i, (s, v) in enumerate(zip(sampled, inverted, strict=True))]


def test_criteria_find_their_step() -> None:
    looked = radii([1.0, 0.995, 0.991, 0.97, 0.995, 0.8], [0.9, 0.9, 0.8, 0.7, 0.994, 0.8])
    assert critical_step(looked, "shell").step == -3.0
    assert critical_step(looked, "peak").step == -2.0
    assert critical_step(looked, "gap").step == -1.0
    # Nothing within tolerance: the ends.
    assert critical_step(radii([0.9, 0.5], [0.1, 0.1]), "shell").step == -5.0
    assert critical_step(radii([0.9, 0.5], [0.1, 0.1]), "gap").step == -4.0
    with pytest.raises(ConfigurationError, match="no step"):
        critical_step([], "shell")
    with pytest.raises(ConfigurationError, match="shell, peak, gap"):
        critical_step(looked, "other")  # type: ignore[arg-type]


def test_the_readable_step_is_the_noisiest_that_is_as_good_as_any() -> None:
    accuracies = {-3.0: 0.6, -2.0: 0.88, -1.0: 0.9, 0.0: 0.89}
    # One standard error of 0.9 is 0.03 on 100 latents, 0.003 on 10,000.
    assert readable_step(accuracies, 100) == -2.0
    assert readable_step(accuracies, 10_000) == -1.0
    assert readable_step({-1.0: 1.0, -2.0: 1.0, -3.0: 0.99}, 100) == -2.0
    with pytest.raises(ConfigurationError, match="no step"):
        readable_step({}, 100)


def test_pure_noise_has_radius_1() -> None:
    z = torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert mean_radius(z) == pytest.approx(1, abs=0.01)
    assert mean_radius(3 * z, 3.0) == pytest.approx(mean_radius(z))


def test_radii_of_the_model_approach_the_shell(bench: Bench) -> None:
    first, last = bench.radii([bench.files.noise.lambda_start, bench.files.noise.lambda_at(150.0)], 40)
    assert first.sampled == pytest.approx(1, abs=0.05)
    assert last.sampled < first.sampled


def test_parts_share_no_image() -> None:
    parts = [load_part("digits", part, 1, 8) for part in ("fit", "search", "report")]
    assert sum(len(p.labels) for p in parts) == 1797
    sets = [{image.tobytes() for image in p.images} for p in parts]
    # The set itself holds a few images twice; otherwise the parts are apart.
    assert max(len(a & b) for a, b in ((sets[0], sets[1]), (sets[0], sets[2]), (sets[1], sets[2]))) <= 3
    assert all(len(np.unique(p.labels)) == 10 for p in parts)


def test_attributes_are_read_by_name_number_and_rest() -> None:
    classes = ("cat", "dog", "Emu", "fox")
    assert parse_attribute("emu,0/rest", "own", classes).negative == (1, 3)
    assert parse_attribute("nine", "digits", tuple("0123456789")).positive == (9,)
    for text, words in (("horns", "unknown attribute"), ("gnu/cat", "unknown class"), ("cat/cat,dog", "both sides")):
        with pytest.raises(ConfigurationError, match=words):
            parse_attribute(text, "own", classes)


def test_too_few_images_and_a_data_set_of_another_size_are_refused(tmp_path: Path) -> None:
    data = load_part("digits", "fit", 1, 8)
    assert len(side(data, (3, 5), 7, "x").images) == 7
    with pytest.raises(DataError, match="at least 500 are needed"):
        side(data, (3,), 1000, "x", least=500)
    with pytest.raises(DataError, match="the model makes 1x28x28"):
        load_part("digits", "fit", 1, 28)
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    folders = load_part(str(tmp_path), "report", 1, 8)
    assert folders.classes == ("with", "without")
    assert len(folders.labels) == 4
    assert load_part(str(tmp_path), "report", 1, 16).images.shape == (4, 1, 16, 16)
