"""Measures of identity: 1 for the untouched, 0 for unrelated images, by any distance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.editing.identity import PairedDistance, make_identity
from fewstep.tasks.editing.measures import MeasuredIdentities
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.models.files import ZOO, ModelFiles, find_model

CODE = """
import torch

def apart(a, b):
    return (a - b).abs().mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)

class Scaled:
    def __call__(self, a, b):
        return 2 * apart(a, b).flatten()

def alike(a, b):
    return 1 - apart(a, b)

def one(a, b):
    return (a - b).abs().mean()
"""


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return find_model("digits-ddpm")


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(CODE)
    return path


def measure(given: str, files: ModelFiles, **fields: Any) -> PairedDistance:
    subject = EditSubject.build(model="digits-ddpm", data="digits", attribute="nine", identity=given, **fields)
    found = make_identity(subject, files, "cpu")
    assert found is not None
    return found


def images(seed: int) -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("given", ["perceptual", "CLASSIFIER", "distance:CODE:apart", "distance:CODE:Scaled"])
def test_identity_is_1_for_the_untouched_and_0_for_unrelated_images(given: str, files: ModelFiles, code: Path) -> None:
    named = given.replace("CLASSIFIER", str(ZOO / "digits-ddpm" / "classifier")).replace("CODE", str(code))
    found = MeasuredIdentities(images(0), images(1), measure(named, files))
    assert np.allclose(found(images(0)).both, 1)
    assert found(images(1)).both.mean() == pytest.approx(0, abs=1e-9)
    near = found(images(0) + 0.05 * images(2)).both
    assert (near > 0).all()
    assert (near < 1).all()
    assert found(images(0)).pixels is None


def test_perceptual_is_the_squared_distance_of_unit_features(files: ModelFiles) -> None:
    features = make_extractor("auto", files, "cpu")
    a, b = (features(images(seed)) for seed in (0, 1))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert np.allclose(measure("perceptual", files)(images(0), images(1)), 2 - 2 * cosine)


def test_what_decides_about_a_measure_is_its_address(files: ModelFiles, code: Path, tmp_path: Path) -> None:
    changed = tmp_path / "mine.py"
    changed.write_text(CODE.replace("mean(dim", "sum(dim"))
    given = ("perceptual", f"distance:{code}:apart", f"distance:{code}:Scaled", f"distance:{changed}:apart")
    assert len({measure(one, files).hash for one in given}) == len(given)
    for name in ("", "surroundings"):
        subject = EditSubject.build(model="digits-ddpm", data="digits", attribute="nine", identity=name)
        assert make_identity(subject, files, "cpu") is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("likeness", "unknown identity 'likeness': give surroundings, perceptual, distance"),
        ("distance", "write it as distance:MODULE:CALLABLE"),
        ("distance:CODE:alike", "a distance is 0 for equal ones"),
        ("distance:CODE:one", "one finite number each is due"),
        ("distance:CODE:nothing", "cannot be loaded"),
        ("perceptual:missing.pt", "no feature network at missing.pt"),
    ],
)
def test_what_measures_nothing_is_refused(given: str, words: str, files: ModelFiles, code: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        measure(given.replace("CODE", str(code)), files)
