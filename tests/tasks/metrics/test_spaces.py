"""Feature spaces of somebody's networks: what they are given, what they give, and what is refused."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.spaces.preparation import Preparation
from fewstep.tasks.models.files import ModelFiles, find_model

COUNT = 5


@pytest.fixture(scope="module")
def grey() -> ModelFiles:
    """A model of 1x8x8 images."""
    return find_model("digits-ddpm")


def images(channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(COUNT, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Encoder(nn.Module):
    """Of images of `channels`, at any size or, with `size`, at that alone."""

    def __init__(self, channels: int = 1, size: int = 0, dim: int = 6) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.pool = nn.Flatten() if size else nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(4 * size * size if size else 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.pool(torch.tanh(self.conv(x)))))


def scripted(network: nn.Module, path: Path, **said: Any) -> str:
    torch.jit.script(network).save(str(path))
    if said:
        path.with_suffix(".json").write_text(json.dumps(said))
    return str(path)


def features(given: str, files: ModelFiles) -> tuple[FeatureExtractor, Any]:
    extractor = make_extractor(given, files, "cpu")
    found = extractor(images(files.channels, files.size))
    assert found.dtype == np.float64
    assert found.shape == (COUNT, extractor.dim)
    return extractor, found


# -- TorchScript ------------------------------------------------------------------------------------------


def test_a_torchscript_file_gets_the_models_images_as_they_are(tmp_path: Path, grey: ModelFiles) -> None:
    network = Encoder().eval()
    extractor, found = features(scripted(network, tmp_path / "lesions.pt"), grey)
    assert extractor.name == "fid-lesions"
    torch.testing.assert_close(torch.from_numpy(found).float(), network(images()), rtol=1e-5, atol=1e-6)
    assert extractor(images()[:0]).shape == (0, 6)


def test_grey_becomes_rgb_and_rgb_grey_where_the_network_wants_it(tmp_path: Path, grey: ModelFiles) -> None:
    colour = Encoder(3).eval()
    _, found = features(scripted(colour, tmp_path / "colour.pt"), grey)
    torch.testing.assert_close(torch.from_numpy(found).float(), colour(images().repeat(1, 3, 1, 1)))
    red = images(3)
    red[:, 1:] = -1
    told = Preparation(channels=1)(red)
    torch.testing.assert_close(told, 0.299 * red[:, :1] - 0.587 - 0.114)
    with pytest.raises(ConfigurationError, match="4 channels cannot be made images of 3"):
        Preparation(channels=3)(torch.zeros(1, 4, 2, 2))


def test_what_stands_beside_the_file_says_size_and_values(tmp_path: Path, grey: ModelFiles) -> None:
    network = Encoder(3, size=12).eval()
    said = {"channels": 3, "size": 12, "mean": [0.5, 0.4, 0.3], "std": 0.25}
    given = scripted(network, tmp_path / "e.ts", **said)
    extractor, found = features(given, grey)
    large = nn.functional.interpolate(images().repeat(1, 3, 1, 1), (12, 12), mode="bilinear", antialias=True)
    mean = torch.tensor(said["mean"]).view(3, 1, 1)
    expected = network(((large + 1) / 2 - mean) / 0.25)
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=1e-4, atol=1e-5)
    # What happens to the images is part of what the space is.
    (tmp_path / "e.json").write_text(json.dumps(said | {"std": 0.5}))
    assert make_extractor(given, grey, "cpu").hash != extractor.hash


def test_a_smaller_size_is_reached_without_aliases() -> None:
    stripes = torch.ones(1, 1, 1, 16) * torch.tensor([1.0, -1.0]).repeat(8)
    small = Preparation(size=4)(stripes.expand(1, 1, 16, 16))
    assert float(small.abs().max()) < 0.2


def test_the_hash_is_that_of_the_weights(tmp_path: Path, grey: ModelFiles) -> None:
    one, again, other = (scripted(Encoder(), tmp_path / f"{n}.pt") for n in "abc")
    changed = Encoder()
    changed.head.weight.data += 1e-3
    scripted(changed, tmp_path / "c.pt")
    Path(again).write_bytes(Path(one).read_bytes())
    a, b, c = (make_extractor(given, grey, "cpu").hash for given in (one, again, other))
    assert a == b != c


class Odd(nn.Module):
    """Gives what a `way` says."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(64, track_running_stats=False)

    def forward(self, x: Tensor) -> Any:
        flat = x.flatten(1)
        if self.way == "pair":
            return flat, flat.sum(1)
        if self.way == "tokens":
            return x.flatten(2)
        if self.way == "endless":
            return flat / 0
        if self.way == "random":
            return flat * torch.rand_like(flat)
        if self.way == "mixed":
            return flat - flat.mean(0)
        if self.way == "together":
            return self.norm(flat)
        return flat.new_zeros(len(flat) + 1, 3)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("pair", "gives tuple, not one tensor"),
        ("tokens", r"gives \(3, 1, 64\), not \(N, D\)"),
        ("endless", "not finite"),
        ("random", "other features of the same images"),
        ("together", "an image alone cannot go through it"),
        ("mixed", "depend on the images beside it"),
        ("more", r"of 3 images it gives \(4, 3\)"),
    ],
)
def test_a_network_that_gives_no_features_of_each_image_is_refused(
    way: str, words: str, grey: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"odd_{way}"
    (tmp_path / f"{module}.py").write_text("network = None\ndef make():\n    return network\n")
    __import__(module).network = Odd(way)
    with pytest.raises(ConfigurationError, match=words) as caught:
        make_extractor(f"{module}:make", grey, "cpu")
    assert "\n" not in str(caught.value)
    assert module in str(caught.value)


def test_files_that_are_no_networks_are_refused(tmp_path: Path, grey: ModelFiles) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "state.pt")
    (tmp_path / "text.onnx").write_text("no network")
    scripted(Encoder(2), tmp_path / "two.pt")
    scripted(Encoder(1, size=9), tmp_path / "nine.pt")
    scripted(Encoder(), tmp_path / "said.pt", sise=3)
    damaged = Encoder()
    damaged.head.weight.data[0, 0] = float("nan")
    scripted(damaged, tmp_path / "damaged.pt")
    for name, words in {
        "state.pt": "no TorchScript file",
        "text.onnx": "no ONNX file",
        "absent.pt": "check the path",
        "absent.onnx": "check the path",
        "two.pt": "images 1x8x8 cannot go through it.*say what it takes in .*two.json",
        "nine.pt": "images 1x8x8 cannot go through it",
        "said.pt": r"said.json: sise.*may hold channels, size",
        "damaged.pt": "not finite",
    }.items():
        with pytest.raises(ConfigurationError, match=words) as caught:
            make_extractor(str(tmp_path / name), grey, "cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"unknown features 'nothing'.*inception.*TorchScript"):
        make_extractor("nothing", grey, "cpu")


# -- ONNX -------------------------------------------------------------------------------------------------


def _varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + _varint(n >> 7)


def _field(number: int, value: int | bytes | str) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _image(name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_field(1, _field(1, n) if isinstance(n, int) else _field(2, n)) for n in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def linear_onnx(path: Path, weights: Any, shape: Sequence[int | str], outputs: int = 1) -> str:
    """A file of Flatten and MatMul, written as the format says: there is no exporter at hand."""
    flat = _field(1, "x") + _field(2, "flat") + _field(4, "Flatten")
    product = _field(1, "flat") + _field(1, "w") + _field(2, "y") + _field(4, "MatMul")
    tensor = b"".join(_field(1, n) for n in weights.shape) + _field(2, 1) + _field(8, "w")
    graph = _field(1, flat) + _field(1, product) + _field(2, "g")
    graph += _field(5, tensor + _field(9, np.asarray(weights, "<f4").tobytes())) + _field(11, _image("x", shape))
    graph += _field(12, _image("y", ["n", weights.shape[1]]))
    if outputs > 1:
        graph += _field(12, _image("flat", ["n", weights.shape[0]]))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13)))
    return str(path)


@pytest.mark.parametrize("count", ["n", 1, 4])
def test_an_onnx_file_says_itself_what_it_takes(tmp_path: Path, grey: ModelFiles, count: int | str) -> None:
    pytest.importorskip("onnxruntime")
    W = np.random.default_rng(0).standard_normal((3 * 4 * 4, 5)).astype(np.float32)
    given = linear_onnx(tmp_path / "net.onnx", W, [count, 3, 4, 4])
    extractor, found = features(given, grey)
    small = nn.functional.interpolate(images().repeat(1, 3, 1, 1), (4, 4), mode="bilinear", antialias=True)
    np.testing.assert_allclose(found, small.flatten(1).numpy() @ W, rtol=1e-4, atol=1e-5)
    linear_onnx(tmp_path / "net.onnx", W + 1e-3, [count, 3, 4, 4])
    assert make_extractor(given, grey, "cpu").hash != extractor.hash


def test_of_several_outputs_of_an_onnx_file_one_is_named(tmp_path: Path, grey: ModelFiles) -> None:
    pytest.importorskip("onnxruntime")
    given = linear_onnx(tmp_path / "net.onnx", np.ones((64, 2), np.float32), ["n", 1, 8, 8], outputs=2)
    with pytest.raises(ConfigurationError, match=r'has outputs y, flat: say which, as {"output": NAME}'):
        make_extractor(given, grey, "cpu")
    for output, dim in (("flat", 64), ("y", 2), (0, 2)):
        (tmp_path / "net.json").write_text(json.dumps({"output": output}))
        assert features(given, grey)[0].dim == dim
    (tmp_path / "net.json").write_text('{"output": "z"}')
    with pytest.raises(ConfigurationError, match="no output 'z' but y, flat"):
        make_extractor(given, grey, "cpu")


def test_without_onnxruntime_an_onnx_file_is_refused(
    tmp_path: Path, grey: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = linear_onnx(tmp_path / "net.onnx", np.ones((64, 2), np.float32), ["n", 1, 8, 8])
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigurationError, match=r"needs onnxruntime.*pip install 'fewstep\[onnx\]'"):
        make_extractor(given, grey, "cpu")


# -- a user's own code ------------------------------------------------------------------------------------

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed({seed})
        self.head = nn.Linear(64, 3)
        self.drop = nn.Dropout(0.9)

    def forward(self, x):
        return self.drop(self.head(x.flatten(1)))

def plain():
    return lambda images: images.flatten(1)[:, :4]

def asks(folder):
    return Net()

instance = Net()
number = 3
"""


def test_a_callable_gives_a_network_that_is_put_in_evaluation_mode(
    tmp_path: Path, grey: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE.format(seed=1))
    network, found = features("mine:Net", grey)
    by_file, same = features(f"{tmp_path}/mine.py:Net", grey)
    assert found.tobytes() == same.tobytes() == features("mine.py:instance", grey)[1].tobytes()
    assert (network.name, network.hash) == ("fid-Net", by_file.hash)
    plain, first = features("mine:plain", grey)
    np.testing.assert_array_equal(first, images().flatten(1)[:, :4].double())
    assert plain.hash != network.hash
    # Other code is another space, also where it gives the same.
    (tmp_path / "others.py").write_text(CODE.format(seed=1) + "# changed\n")
    assert make_extractor("others:plain", grey, "cpu").hash != plain.hash
    for given, words in {
        "mine:asks": "takes arguments",
        "mine:number": "cannot be called",
        "mine:absent": "no attribute 'absent'",
        "absent_module:make": "no module absent_module",
        "absent.py:make": "no file absent.py",
    }.items():
        with pytest.raises(ConfigurationError, match=words):
            make_extractor(given, grey, "cpu")


def test_code_that_fails_is_an_error_of_one_line(tmp_path: Path, grey: ModelFiles) -> None:
    for name, code in {
        "import": "raise RuntimeError('broken\\non import')",
        "factory": "def make():\n    raise KeyError('weights')",
        "nothing": "def make():\n    return None",
    }.items():
        (tmp_path / f"{name}_.py").write_text(code)
        with pytest.raises(ConfigurationError, match=f"{name}_.py:make") as caught:
            make_extractor(f"{tmp_path}/{name}_.py:make", grey, "cpu")
        assert "\n" not in str(caught.value)


def test_features_that_are_not_finite_later_are_an_error(tmp_path: Path, grey: ModelFiles) -> None:
    (tmp_path / "logs.py").write_text(
        textwrap.dedent("""
        def make():
            return lambda images: (images.flatten(1) + 1).log()
        """)
    )
    extractor = make_extractor(f"{tmp_path}/logs.py:make", grey, "cpu")
    with pytest.raises(EvaluationError, match="1 of 5 feature vectors of fid-make are not finite"):
        extractor(torch.cat([images()[:4], -torch.ones(1, 1, 8, 8)]))


# -- transformers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of small untrained models by name."""
    import transformers as t

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    wide = {"intermediate_size": 8}
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp("vision") / name
        torch.manual_seed(0)
        text = t.CLIPTextConfig(vocab_size=9, max_position_embeddings=6, hidden_size=8, num_hidden_layers=1, **wide)
        clip = t.CLIPVisionConfig(projection_dim=5, **small, **wide)
        models: dict[str, Callable[[], Any]] = {
            "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**small)),
            "vit-head": lambda: t.ViTForImageClassification(t.ViTConfig(**small, **wide)),
            "clip-vision": lambda: t.CLIPVisionModelWithProjection(clip),
            "clip": lambda: t.CLIPModel(
                t.CLIPConfig(text_config=text.to_dict(), vision_config=clip.to_dict(), projection_dim=5)
            ),
            "resnet": lambda: t.ResNetModel(
                t.ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
            ),
            "mae": lambda: t.ViTMAEModel(t.ViTMAEConfig(**small, **wide)),
            "bert": lambda: t.BertModel(
                t.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, **wide)
            ),
        }
        models[name]().eval().save_pretrained(str(folder))
        if name != "bert":
            t.CLIPImageProcessor(size={"shortest_edge": 9}, crop_size={"height": 8, "width": 8}).save_pretrained(
                str(folder)
            )
        made[name] = folder
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "dim", "part"),
    [
        ("dinov2", 8, "pooler_output"),
        ("vit-head", 8, "first token"),
        ("clip-vision", 5, "image_embeds"),
        ("clip", 5, "image_embeds"),
        ("resnet", 6, "pooler_output"),
    ],
)
def test_a_transformers_folder_is_used_as_its_own_processor_says(
    name: str, dim: int, part: str, vision: Callable[[str], Path], grey: ModelFiles
) -> None:
    import transformers as t

    folder = vision(name)
    extractor, found = features(str(folder), grey)
    assert (extractor.name, extractor.dim) == (f"fid-{name}", dim)
    # At the processor's own crop, and so unresized, its pixels are ours.
    pixels = (images().repeat(1, 3, 1, 1) + 1) / 2
    ready = t.AutoImageProcessor.from_pretrained(str(folder))(
        list(pixels), do_resize=False, do_center_crop=False, do_rescale=False, return_tensors="pt"
    )["pixel_values"]
    kind = t.CLIPVisionModelWithProjection if name == "clip-vision" else t.AutoModel
    model = kind.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        if name == "clip":
            projected = model.get_image_features(pixel_values=ready)
            expected = getattr(projected, "pooler_output", projected)
        elif part == "first token":
            expected = model(pixel_values=ready).last_hidden_state[:, 0]
        else:
            expected = getattr(model(pixel_values=ready), part).flatten(1)
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=1e-4, atol=1e-5)
    assert make_extractor(str(folder), grey, "cpu").hash == extractor.hash


def test_folders_of_models_that_see_nothing_or_see_at_random_are_refused(
    vision: Callable[[str], Path], grey: ModelFiles, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"takes no images|no image processor"):
        make_extractor(str(vision("bert")), grey, "cpu")
    with pytest.raises(ConfigurationError, match="other features of the same images"):
        make_extractor(str(vision("mae")), grey, "cpu")
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(vision("dinov2"), bare, ignore=shutil.ignore_patterns("preprocessor_config.json"))
    with pytest.raises(ConfigurationError, match=r"no image processor.*processor\.save_pretrained"):
        make_extractor(str(bare), grey, "cpu")
    (bare / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="no model that transformers loads"):
        make_extractor(str(bare), grey, "cpu")


def test_gradients_pass_through_networks_of_pytorch(tmp_path: Path, grey: ModelFiles) -> None:
    from fewstep.tasks.metrics.spaces.network import NetworkFeatures

    extractor = make_extractor(scripted(Encoder(3), tmp_path / "e.pt", size=12), grey, "cpu")
    assert isinstance(extractor, NetworkFeatures)
    x = images().requires_grad_()
    extractor.tensor(x).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) > 0
