"""Feature spaces: a classifier's, and Inception's with and without weights."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from pytorch_fid import inception as pytorch_fid_inception

from fewstep.errors import ConfigurationError, DataError, ModelError
from fewstep.tasks.metrics import inception
from fewstep.tasks.metrics._rebind import rebound
from fewstep.tasks.metrics.features import ClassifierFeatures, FeatureExtractor, InceptionFeatures
from fewstep.tasks.models.classifier import SmallClassifier


def images(count: int, channels: int, size: int) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def classifier(seed: int = 0) -> SmallClassifier:
    torch.manual_seed(seed)
    return SmallClassifier(1, 8, 10, width=8, feature_dim=12).eval()


def test_classifier_features_are_the_networks_in_float64() -> None:
    network = classifier()
    extractor: FeatureExtractor = ClassifierFeatures(network, "fid-digits", batch_size=4)
    batch = images(10, 1, 8)
    result = extractor(batch)
    assert (extractor.name, extractor.dim, result.dtype, result.shape) == (
        "fid-digits",
        12,
        np.float64,
        (10, 12),
    )
    np.testing.assert_allclose(result, network.features(batch).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert result.tobytes() == extractor(batch.double()).tobytes()
    assert extractor(batch[:0]).shape == (0, 12)


def test_the_hash_tells_weights_apart() -> None:
    one, same, other = (ClassifierFeatures(classifier(seed), "x").hash for seed in (0, 0, 1))
    assert one == same != other
    low = classifier().to(torch.bfloat16)
    assert ClassifierFeatures(low, "x").hash != one


def test_classifier_from_its_folder(tmp_path: Path) -> None:
    classifier().save(tmp_path)
    assert ClassifierFeatures.load(tmp_path, "x").hash == ClassifierFeatures(classifier(), "x").hash
    with pytest.raises(ModelError, match="no usable classifier"):
        ClassifierFeatures.load(tmp_path / "absent", "x")


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 1, 9), (2, 3, 8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="choose the feature space"):
        ClassifierFeatures(classifier(), "fid-digits")(torch.zeros(shape))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache, and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.delenv(inception.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of pytorch-fid's shape with random weights, since the real one is a download of 95 MB."""
    torch.manual_seed(0)
    kept: list[torch.nn.Module] = []

    class StopHereError(Exception):
        pass

    def build(*args: object, **options: object) -> torch.nn.Module:
        kept.append(pytorch_fid_inception._inception_v3(*args, **options))
        return kept[0]

    def stop(*_: object, **__: object) -> None:
        raise StopHereError

    # The network stands, patched, before its weights are asked for.
    with pytest.raises(StopHereError):
        rebound(pytorch_fid_inception.fid_inception_v3, _inception_v3=build, load_state_dict_from_url=stop)()
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(kept[0].state_dict(), path)
    return path


def test_without_weights_inception_says_what_to_do(hub: Path) -> None:
    with pytest.raises(DataError, match=r"download failed.*no route to host.*download https://.* or set FEWSTEP_") as e:
        InceptionFeatures()
    assert str(hub) in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.usefixtures("hub")
def test_a_weights_file_that_is_missing_or_something_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(inception.WEIGHTS_VARIABLE, str(tmp_path / "absent.pth"))
    with pytest.raises(DataError, match=r"no Inception weights at .*absent\.pth"):
        InceptionFeatures()
    text, tensor, other = (tmp_path / f"{name}.pth" for name in ("text", "tensor", "other"))
    text.write_text("not weights")
    torch.save(torch.zeros(3), tensor)
    torch.save({"layer": torch.zeros(3)}, other)
    for path, message in (
        (text, "does not hold Inception weights"),
        (tensor, "dictionary"),
        (other, "do not fit"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            InceptionFeatures(path)
        assert "\n" not in str(caught.value)


def test_our_address_of_the_weights_is_pytorch_fids() -> None:
    assert inception.WEIGHTS_URL == pytorch_fid_inception.FID_WEIGHTS_URL


def test_inception_from_path_variable_and_cache_equals_pytorch_fid(
    hub: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = images(3, 3, 32)
    extractor: FeatureExtractor = InceptionFeatures(weights, batch_size=2)
    result = extractor(batch)
    assert (extractor.name, extractor.dim, result.dtype) == ("fid-inception", 2048, np.float64)

    # pytorch-fid itself finds the same file in the cache, and is given what a PNG would hold.
    hub.mkdir(parents=True)
    (hub / inception.WEIGHTS_FILE).symlink_to(weights)
    theirs = pytorch_fid_inception.InceptionV3().eval()
    png = ((batch + 1) * 127.5).round().to(torch.uint8)
    with torch.no_grad():
        expected = theirs(png.float() / 255)[0].flatten(1).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(result, expected, atol=1e-4 * scale)
    assert expected.std(axis=0).max() > 1e-3 * scale

    from_cache = InceptionFeatures()
    monkeypatch.setenv(inception.WEIGHTS_VARIABLE, str(weights))
    assert from_cache.hash == InceptionFeatures().hash == extractor.hash

    grey = batch[:2, :1]
    assert extractor(grey).tobytes() == extractor(grey.repeat(1, 3, 1, 1)).tobytes()
    # Values beyond [-1, 1], which samplers leave behind, count as black and white.
    assert extractor(batch[:1] * 1e12).tobytes() == extractor(batch[:1].sign()).tobytes()
    for shape in ((1, 4, 8, 8), (3, 8, 8)):
        with pytest.raises(ConfigurationError, match="grey or RGB"):
            extractor(torch.zeros(shape))
