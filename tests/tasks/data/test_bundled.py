"""Data sets and image folders: shapes, ranges, and what is said where something is missing."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.data import bundled as data
from fewstep.tasks.data import fashion_folder, load_dataset, load_image_folder


def test_digits() -> None:
    digits = load_dataset("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (-1.0, 1.0)
    assert digits.labels.dtype == np.int64
    assert set(digits.labels) == set(range(len(digits.classes))) == set(range(10))
    assert digits.licence
    assert digits.source
    assert np.array_equal(load_dataset("digits", "test").images, digits.images)


def _idx(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return gzip.compress(head + values.tobytes())


def _write_fashion(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 6), ("t10k", 4)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[0, 0, :2] = 0, 255
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(_idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(_idx(np.arange(count, dtype=np.uint8)))


def test_fashion_is_read_from_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    _write_fashion(tmp_path)
    assert fashion_folder() == tmp_path
    train, test = load_dataset("fashion"), load_dataset("fashion", "test")
    assert train.images.shape == (6, 1, 28, 28)
    assert test.images.shape == (4, 1, 28, 28)
    assert train.images.dtype == np.float32
    assert train.images[0, 0, 0, :2].tolist() == [-1.0, 1.0]
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(train.classes) == 10


@pytest.mark.skipif(not Path(data.FASHION_FOLDERS[0]).is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_packaged_fashion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)
    test = load_dataset("fashion", "test")
    assert test.images.shape == (10_000, 1, 28, 28)
    assert (test.images.min(), test.images.max()) == (-1.0, 1.0)
    assert np.bincount(test.labels).tolist() == [1000] * 10


def test_missing_fashion_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "FASHION_FOLDERS", (str(tmp_path),))
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "absent"))
    assert fashion_folder() is None
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        load_dataset("fashion")


@pytest.mark.parametrize("keep", [0, 2, 3, 12, 300])
def test_a_torn_fashion_file_is_named(keep: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    _write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="train-images"):
        load_dataset("fashion")


def test_a_fashion_folder_without_one_of_its_files_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    _write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels"):
        load_dataset("fashion", "test")


def test_an_unknown_name_is_answered_with_the_known() -> None:
    with pytest.raises(ConfigurationError, match="digits, fashion"):
        load_dataset("mnist")


def test_a_folder_of_images_is_read_in_name_order_whatever_its_kind(tmp_path: Path) -> None:
    for i, name in enumerate(("b.png", "a.bmp", "deep/c.PNG")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB" if i else "L", (6, 6), 255 * (i == 1) if not i else (255 * (i == 1),) * 3).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    grey = load_image_folder(tmp_path, 1, 6)
    assert grey.shape == (3, 1, 6, 6)
    assert grey[:, 0, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert load_image_folder(tmp_path, 3, 6).shape == (3, 3, 6, 6)


def test_image_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        load_image_folder(tmp_path / "absent", 1, 8)
    with pytest.raises(DataError, match="no image in"):
        load_image_folder(tmp_path, 1, 8)
    (tmp_path / "tall.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(DataError, match=r"tall\.png"):
        load_image_folder(tmp_path, 1, 8)


def test_fashion_labels_of_other_images_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    _write_fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes((tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(DataError, match=r"images \(6, 28, 28\) and labels \(4,\)"):
        load_dataset("fashion")
