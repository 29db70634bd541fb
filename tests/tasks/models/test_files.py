"""Finding and checking a model on disk: each thing that can be wrong is said, and the hash names the content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.errors import ModelError
from fewstep.tasks.models import files
from fewstep.tasks.models.files import ZOO, find_model, zoo_names


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory of the user's own: a copy of the bundled model."""
    return Path(shutil.copytree(ZOO / "digits-ddpm", tmp_path / "mine"))


def _edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_the_zoo_is_found_by_name_and_a_directory_by_path(model: Path) -> None:
    assert "digits-ddpm" in zoo_names()
    bundled, own = find_model("digits-ddpm"), find_model(str(model))
    assert (bundled.name, own.name) == ("digits-ddpm", "mine")
    assert (own.channels, own.size, own.prediction_type, own.null_label) == (1, 8, "epsilon", None)
    assert own.hash == bundled.hash
    assert len(own.hash) == 16
    assert own.noise.lambda_start < own.noise.lambda_end


def test_a_zoo_entry_without_its_index_is_not_listed(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(files, "ZOO", model.parent)
    assert zoo_names() == ["mine"]
    (model / "model_index.json").unlink()
    assert zoo_names() == []
    monkeypatch.setattr(files, "ZOO", model / "absent")
    assert zoo_names() == []


def test_a_bare_network_with_a_scheduler_beside_it_is_a_model(model: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(model / "unet", tmp_path / "bare"))
    shutil.copy(model / "scheduler" / "scheduler_config.json", bare)
    assert find_model(str(bare)).hash == find_model(str(model)).hash


def test_labels_and_rectangular_sizes_are_read(model: Path) -> None:
    _edit(model / "unet" / "config.json", num_class_embeds=11, sample_size=[8, 8])
    plain = find_model(str(model))
    assert (plain.classes, plain.null_label, plain.size) == (11, None, 8)
    (model / "fewstep.json").write_text('{"null_label": 10}')
    told = find_model(str(model))
    assert (told.classes, told.null_label) == (10, 10)
    assert told.hash != plain.hash


@pytest.mark.parametrize("label", [0, 9, 11, -1, True, "10", 10.5])
def test_a_null_label_is_the_last_one(model: Path, label: object) -> None:
    _edit(model / "unet" / "config.json", num_class_embeds=11)
    (model / "fewstep.json").write_text(json.dumps({"null_label": label}))
    with pytest.raises(ModelError, match="not the last of the network's 11 labels"):
        find_model(str(model))


def test_what_a_models_own_file_says_acts_or_is_refused(model: Path) -> None:
    (model / "fewstep.json").write_text('{"null_labels": 10}')
    with pytest.raises(ModelError, match="'null_labels', which means nothing"):
        find_model(str(model))
    (model / "fewstep.json").write_text('{"null_label": null}')
    assert find_model(str(model)).null_label is None


def _no_scheduler(model: Path) -> None:
    shutil.rmtree(model / "scheduler")


def _no_config(model: Path) -> None:
    (model / "unet" / "config.json").unlink()


def _no_weights(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _torn_config(model: Path) -> None:
    (model / "unet" / "config.json").write_text('{"in_channels": ')


def _list_config(model: Path) -> None:
    (model / "scheduler" / "scheduler_config.json").write_text("[]")


def _unet(**changes: object) -> Callable[[Path], None]:
    return lambda model: _edit(model / "unet" / "config.json", **changes)


def _scheduler(**changes: object) -> Callable[[Path], None]:
    return lambda model: _edit(model / "scheduler" / "scheduler_config.json", **changes)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (_no_scheduler, "no scheduler/scheduler_config.json"),
        (_no_config, "no unet/config.json"),
        (_no_weights, "no weights"),
        (_torn_config, "cannot read"),
        (_list_config, "not a JSON object"),
        (_unet(_class_name="UNet1DModel"), "UNet1DModel"),
        (_unet(_class_name="UNet2DConditionModel"), "no text_encoder/"),
        (_unet(out_channels=2), "1 channels in and 2 out"),
        (_unet(sample_size=None), "sample_size is missing"),
        (_unet(sample_size=[8, 16]), "square"),
        (_unet(in_channels=None, out_channels=None), "in_channels"),
        (_scheduler(prediction_type="flow"), "'flow'"),
    ],
)
def test_each_fault_is_named(breaks: Callable[[Path], None], words: str, model: Path) -> None:
    breaks(model)
    with pytest.raises(ModelError) as caught:
        find_model(str(model))
    assert words in str(caught.value)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "NoSuchScheduler"}, "'NoSuchScheduler'"),
        ({"_class_name": "KarrasVeScheduler"}, "KarrasVeScheduler"),
        ({"_class_name": "utils"}, "'utils' describes no noise schedule"),
        ({"_class_name": "UNet2DModel"}, "'UNet2DModel' describes no noise schedule"),
        ({"_class_name": ["DDPMScheduler"]}, "describes no noise schedule"),
        ({"_class_name": None}, "None describes no noise schedule"),
    ],
)
def test_a_noise_schedule_that_cannot_be_read_is_named(changes: dict[str, object], words: str, model: Path) -> None:
    _scheduler(**changes)(model)
    with pytest.raises(ModelError, match=words):
        _ = find_model(str(model)).noise


def test_a_model_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(ModelError, match="digits-ddpm"):
        find_model("digits")


@pytest.mark.parametrize("where", ["weights", "network", "scheduler"])
def test_the_hash_changes_with_everything_that_decides_the_samples(where: str, model: Path) -> None:
    before = find_model(str(model)).hash
    if where == "weights":
        path = model / "unet" / "diffusion_pytorch_model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        name = "unet/config.json" if where == "network" else "scheduler/scheduler_config.json"
        _edit(model / name, _note="changed")
    assert find_model(str(model)).hash != before


def test_the_hash_does_not_change_with_cards_and_names(model: Path, tmp_path: Path) -> None:
    before = find_model(str(model)).hash
    (model / "README.md").write_text("another card")
    moved = shutil.move(model, tmp_path / "elsewhere")
    assert find_model(str(moved)).hash == before


def test_a_name_on_the_hub_is_its_folder_in_the_cache(
    family_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    cache = tmp_path / "models--someone--tiny"
    shutil.copytree(family_folder("ddpm"), cache / "snapshots" / "0123abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    found = find_model("someone/tiny")
    assert (found.name, found.hash) == ("tiny", find_model(str(family_folder("ddpm"))).hash)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no model 'someone/other': it is no folder, and the hub gave none"):
        find_model("someone/other")
