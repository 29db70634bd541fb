"""Training on one's own images: the network fits the data, a kill costs nothing, parts and processes add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from fewstep.errors import ConfigurationError, DataError, FewstepError, ModelError
from fewstep.tasks.data import open_source
from fewstep.tasks.models.files import find_model
from fewstep.tasks.training import cache as caches
from fewstep.tasks.training.own import fitting_recipe, train_own
from fewstep.tasks.training.presets import PRESETS

ROOT = Path(__file__).resolve().parents[3]
SIZE = 8
TRANSFORMER = {"patch_size": 1, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
UNET = {
    "layers_per_block": 1,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 2,
    "attention_head_dim": 4,
    "dropout": 0.2,
}
BASE = {"steps": 9, "batch": 8, "warmup": 3, "save_every": 4, "objective": "flow", "size": SIZE, "flip": True}


class _PowerCutError(Exception):
    pass


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two labels, none of them of the model's size."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(30):
        path = folder / ("cats", "dogs")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9 + i % 5, 12, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "vae"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=2,
            norm_num_groups=2,
            mid_block_add_attention=False,
            scaling_factor=0.7,
            shift_factor=0.1,
        ).save_pretrained(str(folder))
    return folder


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "CHUNK", 8)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = [*folder.glob("unet/*.safetensors"), *folder.glob("transformer/*.safetensors")]
    return load_file(file)


def equal(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def close(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[k], theirs[k], atol=2e-5) for k in ours)


@pytest.mark.parametrize("kind", ["transformer", "unet", "pixels"])
def test_a_training_that_is_killed_again_and_again_has_the_bits_of_one_that_was_not(
    kind: str, images: Path, vae: Path, tmp_path: Path
) -> None:
    network = {"transformer": TRANSFORMER} if kind == "transformer" else {"unet": UNET}
    fields = BASE | network | ({"label_dropout": 0.3} if kind != "pixels" else {})
    encoder = None if kind == "pixels" else str(vae)

    def run(name: str, progress: Any = None) -> Path:
        train_own(fields, str(images), encoder, tmp_path / name, tmp_path / f"{name}-kept", progress=progress)
        return tmp_path / name

    whole = run("whole")
    seen: list[tuple[str, int]] = []

    def cut(stage: str, step: int, total: int, loss: float) -> None:
        seen.append((stage, step))
        if len(seen) < 7:
            raise _PowerCutError

    for _ in range(6):
        with pytest.raises(_PowerCutError):
            run("cut", cut)
    cut_off = tmp_path / "cut-kept"
    (data,) = cut_off.glob("data-*")
    for name in data.iterdir():  # Rows that were written and not said to be.
        if name.suffix != ".json":
            assert name.stat().st_size
    assert not (tmp_path / "cut" / "model_index.json").exists()
    assert equal(run("cut", cut), whole)
    # Every chunk of data once, every checkpoint once.
    assert seen == [("data", n) for n in (8, 16, 24, 30)] + [("network", n) for n in (4, 8, 9)]
    files = find_model(str(whole))
    assert (files.channels, files.size) == (3, SIZE)
    loader = DiTTransformer2DModel if kind == "transformer" else UNet2DModel
    loader.from_pretrained(str(whole / ("transformer" if kind == "transformer" else "unet")))
    figures = json.loads((whole / "card.json").read_text())
    assert figures["images"] == 30
    assert "centre cropped" in figures["resized"]


def test_rows_that_were_written_but_not_finished_are_written_again(images: Path, vae: Path, tmp_path: Path) -> None:
    fields = BASE | {"unet": UNET, "steps": 1}
    train_own(fields, str(images), str(vae), tmp_path / "a", tmp_path / "kept")
    (data,) = (tmp_path / "kept").glob("data-*")
    whole = {path.name: path.read_bytes() for path in data.iterdir()}
    progress = json.loads(whole["progress.json"])
    for path in data.iterdir():
        path.unlink()
    for name in ("mean", "std", "labels"):
        (data / name).write_bytes(whole[name][: len(whole[name]) // 30 * 5])  # A torn first chunk.
    train_own(fields, str(images), str(vae), tmp_path / "b", tmp_path / "kept")
    assert {path.name: path.read_bytes() for path in data.iterdir()} == whole
    assert progress["done"] == 30


@pytest.mark.parametrize(
    ("name", "more"), [("accumulate", {"accumulate": 4}), ("checkpointing", {"checkpointing": True})]
)
def test_what_saves_memory_changes_nothing_but_rounding(
    name: str, more: dict[str, Any], images: Path, vae: Path, tmp_path: Path
) -> None:
    fields = BASE | {"transformer": TRANSFORMER, "label_dropout": 0.3}
    for out, changed in (("plain", {}), (name, more)):
        train_own(fields | changed, str(images), str(vae), tmp_path / out, tmp_path / f"{out}-kept")
    assert close(tmp_path / "plain", tmp_path / name)
    assert all(bool(v.abs().sum()) for k, v in weights(tmp_path / name).items() if "proj_out_2.weight" in k)


def test_bfloat16_calls_are_others_and_near(images: Path, vae: Path, tmp_path: Path) -> None:
    fields = BASE | {"transformer": TRANSFORMER}
    for precision in ("float32", "bfloat16"):
        place = tmp_path / precision
        train_own(fields | {"precision": precision}, str(images), str(vae), place, place / "kept")
    assert not equal(tmp_path / "float32", tmp_path / "bfloat16")
    ours, theirs = weights(tmp_path / "float32"), weights(tmp_path / "bfloat16")
    assert all(v.dtype == torch.float32 for v in theirs.values())
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in ours) < 0.02


# In a process of its own: it forks, which autograd forbids where it has threads already.
TWO_PROCESSES = """
import json, sys
from pathlib import Path
import accelerate
from fewstep.tasks.training.own import train_own

fields, images, vae, out, kept = json.loads(sys.argv[1])
accelerate.debug_launcher(train_own, (fields, images, vae, Path(out), Path(kept)), num_processes=2)
"""


def test_two_processes_of_accelerate_are_one(images: Path, vae: Path, tmp_path: Path) -> None:
    fields = BASE | {"label_dropout": 0.3, "accumulate": 2, "transformer": TRANSFORMER}
    train_own(fields, str(images), str(vae), tmp_path / "one", tmp_path / "one-kept")
    told = json.dumps([fields, str(images), str(vae), str(tmp_path / "two"), str(tmp_path / "two-kept")])
    subprocess.run([sys.executable, "-P", "-c", TWO_PROCESSES, told], check=True, timeout=300)
    figures = [json.loads((tmp_path / name / "card.json").read_text()) for name in ("one", "two")]
    assert [f["processes"] for f in figures] == [1, 2]
    assert figures[0]["content"] == figures[1]["content"]
    assert close(tmp_path / "one", tmp_path / "two")


def test_damaged_checkpoints_and_caches_are_named(images: Path, vae: Path, tmp_path: Path) -> None:
    fields = BASE | {"unet": UNET, "steps": 1}
    kept = tmp_path / "kept"

    def run() -> None:
        train_own(fields, str(images), str(vae), tmp_path / "out", kept)

    run()
    whole = (kept / "training.pt").read_bytes()
    (kept / "training.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"training\.pt cannot be read"):
        run()
    (kept / "training.pt").write_bytes(whole)
    (data,) = kept.glob("data-*")
    mean = (data / "mean").read_bytes()
    (data / "mean").write_bytes(mean[:-1])
    with pytest.raises(DataError, match="mean is cut off"):
        run()
    (data / "progress.json").write_text("[]")
    with pytest.raises(DataError, match=r"progress\.json is damaged"):
        run()


def test_a_checkpoint_of_other_data_or_of_another_recipe_is_not_gone_on_from(
    images: Path, vae: Path, tmp_path: Path
) -> None:
    fields = BASE | {"unet": UNET, "steps": 2}

    def run(data: str = str(images), **changes: Any) -> None:
        train_own(fields | changes, data, str(vae), tmp_path / "out", tmp_path / "kept")

    run()
    # The same images elsewhere are the same data.
    other = tmp_path / "copied"
    for path in images.rglob("*.png"):
        (other / path.parent.name).mkdir(parents=True, exist_ok=True)
        (other / path.parent.name / path.name).write_bytes(path.read_bytes())
    run(str(other), accumulate=2)
    with pytest.raises(ConfigurationError, match=r"learning_rate 0\.001 is now 0\.5"):
        run(learning_rate=0.5)
    (other / "cats" / "00.png").write_bytes((other / "cats" / "02.png").read_bytes())
    with pytest.raises(ConfigurationError, match="other data"):
        run(str(other))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 7}, "multiples of 2"),
        ({"size": "8"}, "side of the images"),
        ({"size": 20, "transformer": TRANSFORMER | {"patch_size": 4}}, "multiples of 4, not 10"),
        ({"transformer": TRANSFORMER | {"in_channels": 4}}, "in_channels is 4 .* 2 by the data"),
        ({"transformer": TRANSFORMER | {"num_embeds_ada_norm": 3}, "label_dropout": 0.1}, "2 by the data"),
        ({"classes": 3, "label_dropout": 0.1}, "names 2"),
        ({"preset": "DiT-S/2"}, "one of preset"),
        ({"preset": "DiT-M/2", "transformer": None}, "unknown preset .* DiT-S/2"),
        ({"transformer": "DiT"}, "table"),
        ({"transformer": None}, "none"),
        ({"features_of": "digits-ddpm"}, "has no features_of"),
        ({"stepz": 3}, "stepz"),
        ({"label_dropout": 2}, "label_dropout"),
        ({"accumulate": 3}, "no 3 equal parts"),
        ({"transformer": TRANSFORMER | {"heads": 2}}, "refuses the recipe's arguments: .*heads"),
        ({"transformer": None, "unet": UNET | {"norm_num_groups": 3}}, "refuses the recipe's arguments"),
        ({"transformer": None, "unet": UNET | {"up_block_types": ["UpBlock3D"]}}, "refuses the recipe's arguments"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    changes: dict[str, Any], words: str, images: Path, vae: Path, tmp_path: Path
) -> None:
    fields = {k: v for k, v in (BASE | {"transformer": TRANSFORMER} | changes).items() if v is not None}
    with pytest.raises(ConfigurationError, match=words):
        train_own(fields, str(images), str(vae), tmp_path / "out", tmp_path / "kept")
    assert not (tmp_path / "out").exists()


def test_data_and_autoencoders_that_do_not_fit_are_refused(images: Path, vae: Path, tmp_path: Path) -> None:
    fields = BASE | {"unet": UNET, "label_dropout": 0.1}

    def refused(error: type[FewstepError], words: str, data: Path, encoder: Path, **changes: Any) -> None:
        with pytest.raises(error, match=words):
            train_own(fields | changes, str(data), str(encoder), tmp_path / "out", tmp_path / "kept")

    refused(ConfigurationError, "names none", images / "cats", vae)
    refused(DataError, "image 0 has no label, there are 3 classes", images / "cats", vae, classes=3)
    np.savez(tmp_path / "a.npz", np.zeros((4, 9, 9, 3), np.uint8), np.array([0, 1, 2, 3]))
    refused(DataError, "image 3 has label 3, there are 3 classes", tmp_path / "a.npz", vae, classes=3)
    refused(DataError, "give one of", tmp_path / "absent", vae)
    refused(ModelError, "no autoencoder", images, tmp_path / "absent")
    UNet2DModel(sample_size=4, **UNET).save_pretrained(str(tmp_path / "unet"))
    refused(ModelError, "UNet2DModel: training takes", images, tmp_path / "unet")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_network_for_its_data(preset: str, images: Path) -> None:
    class Autoencoder:
        class config:  # noqa: N801
            in_channels, latent_channels, sample_size, block_out_channels = 3, 4, 256, (1, 2, 3, 4)

    pixels = preset.startswith("ADM") and preset != "ADM-latent"
    fields = {"steps": 1, "preset": preset, "label_dropout": 0.1, "objective": "flow"}
    if pixels:
        fields["size"] = int(preset.removeprefix("ADM-"))
    recipe, size, _ = fitting_recipe(fields, open_source(str(images)), None if pixels else Autoencoder)
    with torch.device("meta"):
        network = (UNet2DModel if recipe.unet else DiTTransformer2DModel)(**recipe.network)
    count = sum(p.numel() for p in network.parameters())
    # Millions of parameters as published: DiT's table 1 and diffusers' embeddings in every block, ADM's table 4.
    low, high = {"S": (33, 45), "B": (130, 190), "L": (457, 640), "XL": (675, 950)}.get(
        preset.removeprefix("DiT-").partition("/")[0], (0, 0)
    )
    low, high = {"latent": (100, 200), "32": (50, 60), "64": (270, 310), "128": (400, 440), "256": (530, 570)}.get(
        preset.removeprefix("ADM-"), (low, high)
    )
    assert low <= count / 1e6 <= high, count
    assert size == (fields["size"] if pixels else 256)
