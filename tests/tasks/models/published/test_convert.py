"""Published checkpoints: the converted network is the same function, and what cannot be it is refused."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import ModelError
from fewstep.pipeline import cli
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.networks import load_network
from fewstep.tasks.models.published.convert import convert
from fewstep.tasks.models.published.network import Asked
from fewstep.tasks.models.published.time_told import told_thousandfold

LABELS = torch.tensor([0, 3, 1])


def _peers() -> ModuleType:
    name = "fewstep_published_peers"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("peers.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _called(peer: Callable[..., Tensor], channels: int, label: Tensor | None) -> tuple[Any, Tensor]:
    """The filled table of a peer, and three inputs of side 8."""
    table, x = _peers().Table(), torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    peer(table, x, torch.zeros(3), label)
    return table, x


def _same(table: Any, x: Tensor, peer: Callable[..., Tensor], asked: Asked, label: Tensor | None, root: Path) -> Any:
    """The converted model's files, whose network answers as the peer at all times."""
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": v for name, v in table.items()}}, root / "model_475.pth")
    convert(root / "model_475.pth", root / "model", asked)
    files = find_model(str(root / "model"))
    network = load_network(files, "cpu")
    for t in (0.0, 0.012, 0.4, 0.999):
        with torch.no_grad():
            told = torch.full((3,), t if asked.predicts == "flow" else 1000 * t)
            theirs, ours = peer(table, x, told, label), network(x, torch.tensor(1000 * t), label)
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs[:, : x.shape[1]], atol=1e-5, rtol=0)
    return files


@pytest.mark.parametrize("rows", [6, 1])
def test_a_transformer_is_the_same_function_and_is_told_a_thousand_times_t(rows: int, tmp_path: Path) -> None:
    peer, label = partial(_peers().dit, rows=rows), LABELS if rows > 1 else torch.zeros(3, dtype=torch.long)
    table, x = _called(peer, 4, label)
    files = _same(table, x, peer, Asked(heads=4), label, tmp_path)
    assert (files.classes, files.null_label) == ((5, 5) if rows > 1 else (1, 1))
    assert files.prediction_type == "flow_prediction"


@pytest.mark.parametrize(
    ("predicts", "labelled", "shifted", "moved", "order"),
    [
        ("flow", False, True, False, "legacy"),
        ("epsilon", True, True, True, "legacy"),
        ("epsilon", False, False, False, "new"),
    ],
)
def test_a_unet_of_guided_diffusion_is_the_same_function(
    predicts: Any, labelled: bool, shifted: bool, moved: bool, order: Any, tmp_path: Path
) -> None:
    outputs = 3 if predicts == "flow" else 6
    peer = partial(_peers().guided, outputs=outputs, shifted=shifted, moved=moved, order=order)
    label = LABELS if labelled else None
    table, x = _called(peer, 3, label)
    files = _same(table, x, peer, Asked(predicts, side=8, head_channels=16, attention=order), label, tmp_path)
    assert files.classes == (5 if labelled else None)
    assert files.learns_variance == (predicts == "epsilon")


@pytest.mark.parametrize("labelled", [False, True])
def test_a_unet_of_edm_is_the_same_function_and_its_null_label_says_nothing(labelled: bool, tmp_path: Path) -> None:
    label = LABELS if labelled else None
    table, x = _called(_peers().edm, 4, label)
    files = _same(table, x, _peers().edm, Asked(), label, tmp_path)
    assert files.null_label == (5 if labelled else None)
    if labelled:
        told = torch.full((3,), 0.3)
        null = load_network(files, "cpu")(x, 1000 * told, torch.full((3,), 5))
        torch.testing.assert_close(null, _peers().edm(table, x, told, None), atol=1e-5, rtol=0)


def test_few_sinusoids_are_not_taken_for_enough() -> None:
    with pytest.raises(ModelError, match="too few to tell it 1000 t"):
        told_thousandfold(torch.zeros(4, 4), 0.0)


def test_the_command_makes_a_model_of_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = partial(_peers().dit, rows=6)
    table, _ = _called(peer, 4, LABELS)
    save_file(dict(table), tmp_path / "model.safetensors")
    small = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    AutoencoderKL(**small, mid_block_add_attention=False).save_pretrained(tmp_path / "vae")
    given = ["convert", str(tmp_path / "model.safetensors"), "--heads", "4", "--vae", str(tmp_path / "vae")]
    monkeypatch.setattr(sys, "argv", ["fewstep", *given, "--out", str(tmp_path / "made"), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["layout"] == "DiT"
    files = find_model(str(tmp_path / "made"))
    assert (files.shape, files.channels) == ((4, 8, 8), 3)


class _Code:
    """Something that only unpickling could make."""


@pytest.mark.parametrize(
    ("change", "asked", "words"),
    [
        (lambda t: t.pop("blocks.1.mlp.fc2.bias"), Asked(heads=4), r"has no blocks\.1\.mlp\.fc2\.bias"),
        (lambda t: t.update(extra=torch.zeros(2)), Asked(heads=4), "has extra besides"),
        (lambda t: t["pos_embed"].add_(0.1), Asked(heads=4), "pos_embed are no sinusoids"),
        (lambda t: t["final_layer.linear.bias"].fill_(float("nan")), Asked(heads=4), "not finite"),
        (lambda t: None, Asked(), "give heads or head_channels"),
        (lambda t: None, Asked(heads=5), "give other heads"),
        (lambda t: None, Asked("epsilon", heads=4), "told whole steps by other sinusoids"),
        (lambda t: t.pop("x_embedder.proj.weight"), Asked(heads=4), "of no known layout"),
    ],
)
def test_what_is_not_the_network_is_refused(change: Any, asked: Asked, words: str, tmp_path: Path) -> None:
    table, _ = _called(partial(_peers().dit, rows=6), 4, LABELS)
    change(table)
    torch.save(dict(table), tmp_path / "model.pth")
    with pytest.raises(ModelError, match=words):
        convert(tmp_path / "model.pth", tmp_path / "made", asked)
    assert not (tmp_path / "made" / "model_index.json").exists()


@pytest.mark.parametrize("content", [{"model": _Code}, {}, [1, 2], None])
def test_a_file_with_more_than_tensors_is_not_run(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    if content is None:
        path.write_bytes(pickle.dumps(print)[:-3])
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=r"not unpickled|holds no weights|cannot be read"):
        convert(path, tmp_path / "made", Asked())
