"""Quantised networks on disk: bit for bit what was saved, as small as its bits, and whole or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.errors import ModelError
from fewstep.tasks.quantization import storage
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.storage import DESCRIPTION, WEIGHTS, find_quantized, from_pretrained, save_pretrained

Make = Callable[..., Any]
FAST = {"iterations": 1, "tiar_iterations": 2, "solver": "descent", "sweeps": 1, "restarts": 0}


def output(network: QuantizedNetwork, given: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return caller(network.module)(**given)


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("w4a8-naive-paper", "unet", {}),
        ("w4a8-tfmq-full", "unet", {}),
        ("w3a6-tfmq-full", "unet", {"fsc": "all", "tib_bits": 6}),
        ("w5a8-tfmq-paper", "unet", {"tib": "table"}),
        ("w4a8-tfmq-paper", "unet", {"granularity": "token"}),
        ("w4a32-tfmq-paper", "text", {}),
        ("w8a8-tfmq-released", "text", {}),
        ("w2a8-tfmq-full", "dit", {"fsc": "all"}),
        ("w4a8-naive-released", "dit", {"tib": "table"}),
    ],
)
def test_what_is_read_back_computes_the_same_bit_for_bit(
    name: str, kind: str, changes: dict[str, Any], calibrated: Make, inputs: Make, tmp_path: Path
) -> None:
    network, _ = calibrated(name, kind, **(FAST | changes))
    save_pretrained(network, tmp_path / "kept", "tiny", "0123")
    again = from_pretrained(tmp_path / "kept")
    packed = from_pretrained(tmp_path / "kept", compact=True)
    given = inputs(kind)
    # Also at timesteps that were not calibrated.
    for time in (given["time"], given["time"] * 0.7 + 3, *([given["time"][4]] if kind != "dit" else [])):
        asked = given | {"time": time}
        assert torch.equal(output(again, asked), output(network, asked))
        assert torch.equal(output(packed, asked), output(network, asked))
    assert packed.bytes < again.bytes
    assert again.config == network.config
    assert again.plans == network.plans
    save_pretrained(again, tmp_path / "twice", "tiny", "0123")
    assert find_quantized(tmp_path / "twice").hash == find_quantized(tmp_path / "kept").hash
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == sorted([DESCRIPTION, WEIGHTS])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_size_is_bits_times_weights_and_little_else(bits: int, calibrated: Make, tmp_path: Path) -> None:
    network, _ = calibrated(
        f"w{bits}a8-naive-paper", settings={"block_out_channels": (32, 64)}, edge_bits=bits, fsc="none"
    )
    save_pretrained(network, tmp_path / "kept", "tiny", "0123")
    packed = sum(layer.parts[0].codes.numel() for layer in network.layers.values()) * bits / 8
    # A scale and a zero for each output channel, norms, biases and embeddings in full precision.
    channels = sum(layer.shape[0] for layer in network.layers.values())
    others = 4 * sum(value.numel() for value in network.module.state_dict().values()) + 5 * channels
    found = sum(value.nbytes for value in load_file(tmp_path / "kept" / WEIGHTS).values())
    assert found == pytest.approx(packed + others, abs=len(network.layers))
    size = (tmp_path / "kept" / WEIGHTS).stat().st_size
    assert found < size < found + 250 * 8 * len(network.layers)
    assert find_quantized(tmp_path / "kept").bytes == size + (tmp_path / "kept" / DESCRIPTION).stat().st_size


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"root": tmp_path_factory.mktemp("stored")}


@pytest.fixture
def folder(stored: dict[str, Path], calibrated: Make, tmp_path: Path) -> Path:
    """A folder of its own that holds a network, to be damaged."""
    if "folder" not in stored:
        stored["folder"] = stored["root"] / "kept"
        network, _ = calibrated("w4a8-tfmq-released", **FAST)
        save_pretrained(network, stored["folder"], "tiny", "0123")
    return Path(shutil.copytree(stored["folder"], tmp_path / "kept"))


def _tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return damage


def _said(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        said = json.loads((folder / DESCRIPTION).read_text())
        change(said)
        (folder / DESCRIPTION).write_text(json.dumps(said))

    return damage


def _without(ending: str) -> Callable[[Path], None]:
    return _tensors(lambda found: [found.pop(key) for key in list(found) if key.endswith(ending)][:0] or None)


def _shorter(ending: str) -> Callable[[Path], None]:
    def change(found: dict[str, Tensor]) -> None:
        found |= {key: value[:-1].clone() for key, value in found.items() if key.endswith(ending)}

    return _tensors(change)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no codes": (_without(".codes"), "codes"),
    "no scale": (_without(".0.scale"), "scale"),
    "no bias": (_without("conv1.bias"), "bias"),
    "no norm": (_without("norm1.weight"), "norm1"),
    "no edge": (_without("conv_in.weight"), "conv_in"),
    "no times": (_without(".times"), "times"),
    "short codes": (_shorter(".codes"), "codes"),
    "short scale": (_shorter(".0.scale"), "scale"),
    "short edge": (_shorter("conv_in.weight"), "conv_in"),
    "short bias": (_shorter("conv1.bias"), "bias"),
    "left over": (_tensors(lambda found: found.update(other=torch.zeros(1))), "other"),
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-50]) and None, "damaged"),
    "torn weights": (lambda f: (f / WEIGHTS).write_bytes(b"\x08") and None, "damaged"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "fewstep quantize"),
    "no description": (lambda f: (f / DESCRIPTION).unlink(), "fewstep quantize"),
    "nothing": (shutil.rmtree, "fewstep quantize"),
    "cut description": (lambda f: (f / DESCRIPTION).write_text('{"schema_ver') and None, "damaged"),
    "a list": (lambda f: (f / DESCRIPTION).write_text("[1]") and None, "damaged"),
    "newer": (_said(lambda said: said.update(schema_version=99)), "schema version 99"),
    "no version": (_said(lambda said: said.pop("schema_version")), "schema_version"),
    "no plans": (_said(lambda said: said.pop("plans")), "plans"),
    "no model": (_said(lambda said: said.pop("model_hash")), "model_hash"),
    "unknown class": (_said(lambda said: said.update(network="UNet9DModel")), "UNet9DModel"),
    "no network": (_said(lambda said: said.update(network="DDPMScheduler")), "DDPMScheduler"),
    "plans of nothing": (_said(lambda said: said["plans"].update(other=said["plans"]["conv_in"])), "other"),
    "strange plans": (_said(lambda said: said.update(plans=[1])), "damaged"),
    "strange config": (_said(lambda said: said["config"].update(colour="red")), "colour"),
    "other network": (_said(lambda said: said["network_config"].update(layers_per_block=2)), "damaged"),
}


@pytest.mark.parametrize(("damage", "word"), DAMAGES.values(), ids=DAMAGES)
def test_a_folder_that_is_not_whole_is_refused(damage: Callable[[Path], None], word: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ModelError) as refused:
        from_pretrained(folder)
    assert word in str(refused.value)
    assert str(folder) in str(refused.value)


def test_the_hash_knows_everything_that_decides_and_nothing_else(calibrated: Make, tmp_path: Path) -> None:
    """Rows that find their own ranges leave no grid: their bits are in the description alone."""
    hashes = []
    for bits in (8, 6, 8):
        network, _ = calibrated(f"w4a{bits}-naive-paper", "dit", granularity="token", edge_bits=32, fsc="none")
        for layer in network.layers.values():
            if layer.activation is not None and not layer.activation.token:
                layer.activation.bits = bits
        save_pretrained(network, tmp_path / "kept", "tiny", "0123", seconds=len(hashes))
        hashes.append(find_quantized(tmp_path / "kept").hash)
    assert hashes[0] == hashes[2] != hashes[1]


# -- whole or not at all ------------------------------------------------------------------------------------


def test_a_save_that_fails_leaves_what_was_there(
    folder: Path, calibrated: Make, inputs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = calibrated("w3a8-naive-paper")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    for broken in ("save_file", "_into_place"):
        with monkeypatch.context() as patch:
            patch.setattr(storage, broken, full)
            with pytest.raises(OSError, match="no space"):
                save_pretrained(network, folder, "tiny", "0123")
            with pytest.raises(OSError, match="no space"):
                save_pretrained(network, folder.parent / "new", "tiny", "0123")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    # What is there already goes when all is well.
    save_pretrained(network, folder, "tiny", "0123")
    assert torch.equal(output(from_pretrained(folder), inputs()), output(network, inputs()))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_another_process_has_just_put_there_is_replaced(folder: Path, tmp_path: Path) -> None:
    aside = Path(shutil.copytree(folder, tmp_path / "aside"))
    (aside / "mark").write_text("")
    storage._into_place(aside, folder)
    assert (folder / "mark").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
