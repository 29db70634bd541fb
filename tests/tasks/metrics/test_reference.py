"""References: moments of images that are streamed, from wherever they lie, with the bits they have in one go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.data import load_dataset, open_source
from fewstep.tasks.metrics import reference
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.moments import Array, Moments, save_npz
from fewstep.tasks.metrics.partial import Partial
from fewstep.tasks.metrics.reference import features_of, load_reference, measured, measurement_key
from fewstep.tasks.models.files import ModelFiles, find_model


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return find_model("digits-ddpm")


@pytest.fixture(scope="module")
def extractor(files: ModelFiles) -> FeatureExtractor:
    return make_extractor("auto", files, "cpu")


def test_a_streamed_reference_has_the_bits_and_the_address_of_one_go(
    files: ModelFiles, extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Moments.of(extractor(torch.from_numpy(load_dataset("digits").images)))
    found, address = load_reference("digits", files, "auto", extractor)
    assert found.count == whole.count
    assert np.array_equal(found.mean, whole.mean)
    assert np.array_equal(found.covariance, whole.covariance)
    assert address == hashlib.sha256(whole.mean.tobytes() + whole.covariance.tobytes()).hexdigest()[:16]
    # More than is kept at once: the same up to rounding.
    monkeypatch.setattr(reference, "FEATURES", 300 * extractor.dim)
    merged, _ = load_reference("digits", files, "auto", extractor)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_an_npz_of_images_is_told_from_one_of_moments(
    files: ModelFiles, extractor: FeatureExtractor, tmp_path: Path
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    for i, image in enumerate(levels):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    np.savez(tmp_path / "images.npz", levels[..., None])
    by_folder = load_reference(str(tmp_path), files, "auto", extractor)
    by_array = load_reference(str(tmp_path / "images.npz"), files, "auto", extractor)
    assert by_folder[1] == by_array[1]
    moments = Moments.of(extractor(torch.from_numpy(levels[:, None].astype(np.float32) / 127.5 - 1)))
    save_npz(tmp_path / "moments.npz", moments)
    assert load_reference(str(tmp_path / "moments.npz"), files, "auto", extractor)[1] == by_folder[1]
    # ADM's batches hold both: statistics first, as always; the images on demand.
    np.savez(tmp_path / "both.npz", arr_0=levels[..., None], mu=moments.mean + 1, sigma=moments.covariance)
    both, _ = load_reference(str(tmp_path / "both.npz"), files, "auto", extractor)
    assert np.array_equal(both.mean, moments.mean + 1)
    assert load_reference(f"npz:{tmp_path / 'both.npz'}", files, "auto", extractor)[1] == by_folder[1]


def test_references_of_too_few_images_or_of_none_are_refused(
    files: ModelFiles, extractor: FeatureExtractor, tmp_path: Path
) -> None:
    Image.new("L", (20, 30)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="fewer than 2 images"):
        load_reference(str(tmp_path), files, "auto", extractor)
    with pytest.raises(DataError, match="absent"):
        load_reference(str(tmp_path / "absent"), files, "auto", extractor)
    with pytest.raises(DataError, match=r"absent\.npz"):
        load_reference(str(tmp_path / "absent.npz"), files, "auto", extractor)


@pytest.mark.parametrize("killed_after", [1, 4, 5, 7])
def test_a_measurement_that_was_killed_goes_on_and_ends_with_the_same_bits(
    files: ModelFiles, extractor: FeatureExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    """Two batches a group, so that a kill is within a group, between two, and before the moments of the last."""
    monkeypatch.setattr(reference, "IMAGES", 20)
    monkeypatch.setattr(reference, "FEATURES", 40 * extractor.dim)
    levels = np.random.default_rng(0).integers(0, 256, (150, 8, 8), np.uint8)
    np.savez(tmp_path / "images.npz", levels[..., None])
    source = open_source(str(tmp_path / "images.npz"))
    whole = measured(source, 1, 8, extractor)
    key = measurement_key(source, 1, 8, extractor)

    def dying(numbers: range) -> Iterator[Array]:
        yield from islice(features_of(source, 1, 8, extractor, numbers), killed_after)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(source, 1, 8, extractor, Partial(tmp_path / "p", key), dying)
    rest: list[range] = []

    def noting(numbers: range) -> Iterator[Array]:
        rest.append(numbers)
        return features_of(source, 1, 8, extractor, numbers)

    partial = Partial(tmp_path / "p", key)
    found = measured(source, 1, 8, extractor, partial, noting)
    assert rest == [range(20 * killed_after, 150)]
    assert (found.count, found.mean.tobytes()) == (whole.count, whole.mean.tobytes())
    assert found.scatter.tobytes() == whole.scatter.tobytes()
    with pytest.raises(ConfigurationError, match="is of other images"):
        Partial(tmp_path / "p", key[::-1])
    partial.remove()
    assert not (tmp_path / "p").exists()
