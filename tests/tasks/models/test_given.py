"""A user's own image, mask and label map, shown to models that are shown something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import ConfigurationError, DataError
from fewstep.search_spaces.point import as_point
from fewstep.tasks.models.condition_config import ConditionConfig
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.given import given_holes, given_layouts
from fewstep.tasks.sampling.grids import parse_schedule
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

INPAINT = ConditionConfig(kind="inpaint", dataset="digits", channels=3)
LAYOUT = ConditionConfig(kind="layout", dataset="digits", channels=5, thresholds=(-0.5, 0.5))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, make_tiny_flow: Callable[..., Path]) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("given")
    return {c.kind: make_tiny_flow(root / c.kind, c, features=False) for c in (INPAINT, LAYOUT)}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of 400 x 300 pixels in colour."""
    across, down = np.meshgrid(np.linspace(0, 255, 400), np.linspace(0, 255, 300))
    Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White in the left half of as large a picture."""
    numbers = np.zeros((300, 400), np.uint8)
    numbers[:, :200] = 255
    Image.fromarray(numbers).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def _made(model: Path, asked: Conditions) -> tuple[Worker, torch.Tensor]:
    worker = Worker(WorkerSettings(Subject(str(model), conditions=asked)))
    schedule = parse_schedule("ddim/uniform-t-zero@2", worker.files.noise)
    return worker, worker.render(as_point(schedule), 0, 0, 2)


def test_what_is_known_of_an_image_of_one_s_own_stays(models: dict[str, Path], photo: Path, mask: Path) -> None:
    asked = Conditions(image=str(photo), mask=str(mask))
    worker, made = _made(models["inpaint"], asked)
    assert worker.exact.sources is not None
    image = worker.exact.sources.images([0])[0]
    assert image.shape == (1, 8, 8)
    assert torch.equal(made[0, :, :, 4:], image[:, :, 4:])
    assert torch.equal(made[1, :, :, 4:], image[:, :, 4:])
    assert not torch.equal(made[0, :, :, :4], image[:, :, :4])
    assert not torch.equal(made[0], made[1])


def test_a_map_of_one_s_own_decides_about_the_image(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    numbers = np.arange(30 * 40).reshape(30, 40) // 400
    np.save(tmp_path / "maps" / "a.npy", numbers)
    Image.fromarray(np.full((30, 40), 2, np.uint8)).save(tmp_path / "maps" / "b.png")
    worker, made = _made(models["layout"], Conditions(map=str(tmp_path / "maps")))
    assert worker.exact.sources is not None
    layouts = worker.exact.sources.layouts([0, 1, 2])
    assert torch.equal(layouts[0], layouts[2])
    assert torch.equal(layouts[1], torch.full((8, 8), 2))
    assert set(layouts[0].flatten().tolist()) == {0, 1, 2}
    other = _made(models["layout"], Conditions(map=str(tmp_path / "maps" / "b.png")))[1]
    assert not torch.equal(made[0], other[0])
    torch.testing.assert_close(made[1], other[1], atol=1e-5, rtol=0)


def test_another_image_under_the_same_name_is_another_condition(photo: Path, mask: Path) -> None:
    asked = {"image": str(photo), "mask": str(mask)}
    first = Conditions(**asked).hash
    Image.new("RGB", (400, 300)).save(photo)
    assert Conditions(**asked).hash != first


def test_what_does_not_fit_the_model_is_refused(models: dict[str, Path], photo: Path, mask: Path) -> None:
    for kind, asked, words in (
        ("inpaint", {"image": str(photo)}, "by --source or --image with --mask, not --image"),
        ("inpaint", {"map": str(mask)}, "not --map"),
        ("layout", {"image": str(photo), "mask": str(mask)}, "by --source or --map, not --image, --mask"),
        ("layout", {}, "as --source test"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            _made(models[kind], Conditions(**asked))
    with pytest.raises(DataError, match=r"holds colours \(RGB\)"):
        _made(models["layout"], Conditions(map=str(photo)))
    with pytest.raises(DataError, match="holds class 255, the model knows 0 to 2"):
        _made(models["layout"], Conditions(map=str(mask)))


def test_masks_and_maps_that_say_nothing_are_named(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(DataError, match=r"mask 0 of .*black\.png hides nothing at 8 x 8 pixels"):
        given_holes(str(tmp_path / "black.png"), 8)
    (tmp_path / "empty").mkdir()
    for place, words in (("none", "No such file"), ("empty", "no label map at")):
        with pytest.raises(DataError, match=words):
            given_layouts(str(tmp_path / place), 8, 3)
    np.save(tmp_path / "floats.npy", np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"holds float64 of shape \(4, 4\)"):
        given_layouts(str(tmp_path / "floats.npy"), 8, 3)
