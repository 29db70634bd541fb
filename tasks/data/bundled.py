"""Data sets that install offline: scikit-learn's digits and Debian's copy of Fashion-MNIST.

Images are float32 (N, C, H, W) in [-1, 1]; labels are int64 (N,).
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep.errors import ConfigurationError, DataError

FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)


@dataclass(frozen=True)
class Dataset:
    """Images (N, C, H, W) in [-1, 1] with labels (N,), the class names, and where they come from."""

    name: str
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    licence: str
    source: str


def _digits(split: str) -> Dataset:
    # 1,797 images are too few to hold any back from the generative model: both splits are the whole set.
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = (raw.images.astype(np.float32) / 8.0 - 1.0)[:, None]
    return Dataset(
        "digits",
        images,
        raw.target.astype(np.int64),
        tuple(str(i) for i in range(10)),
        "CC BY 4.0",
        "Optical Recognition of Handwritten Digits (UCI), as shipped with scikit-learn",
    )


def _idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read one gzipped IDX file of unsigned bytes."""
    try:
        data = gzip.decompress(path.read_bytes())
        dims = data[3]
        shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; install the data set again") from error


def fashion_folder() -> Path | None:
    """The folder that holds the Fashion-MNIST IDX files, or None where there is none."""
    candidates = [os.environ.get("FEWSTEP_DATA", ""), *FASHION_FOLDERS]
    for folder in (Path(c) for c in candidates if c):
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            return folder
    return None


def _fashion(split: str) -> Dataset:
    folder = fashion_folder()
    if folder is None:
        raise DataError(
            "Fashion-MNIST is not installed: `apt install dataset-fashion-mnist`, or set FEWSTEP_DATA "
            "to the folder with its four .gz files"
        )
    prefix = "train" if split == "train" else "t10k"
    images = _idx(folder / f"{prefix}-images-idx3-ubyte.gz").astype(np.float32) / 127.5 - 1.0
    labels = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise DataError(
            f"{folder}: the {prefix} images {images.shape} and labels {labels.shape} are no Fashion-MNIST: "
            "install the data set again"
        )
    classes = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"]
    return Dataset("fashion", images[:, None], labels, tuple(classes), "MIT", "Fashion-MNIST (Zalando Research)")


DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": _digits, "fashion": _fashion}


def load_dataset(name: str, split: str = "train") -> Dataset:
    """Load a named data set.

    Raises ConfigurationError for an unknown name and DataError where its files are missing.
    """
    if name not in DATASETS:
        raise ConfigurationError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    return DATASETS[name](split)
