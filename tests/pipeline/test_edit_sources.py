"""`fewstep edit` where images come from elsewhere: real ones through a text model, and a text model's for another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.tasks.models.files import ZOO

Run = Callable[..., Any]
JUDGE = ZOO / "digits-ddpm" / "classifier"
CODE = """
import torch

def bright():
    return lambda x: x.mean(dim=(1, 2, 3))[:, None]

def flat():
    return lambda x: x.flatten(1)[:, ::16]

def apart(a, b):
    return (a - b).abs().mean(dim=(1, 2, 3))
"""
FAST = ("--fit-way", "ddim/uniform-t@3", "--inversion", "ddim/uniform-t@3", "--generation", "ddim/uniform-t@3")


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images of two kinds, dark and bright, of a size of their own."""
    folder = tmp_path_factory.mktemp("pictures")
    number = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 120)):
        (folder / name).mkdir()
        for i in range(30):
            levels = number.integers(low, low + 130, (6, 8, 3), np.uint8)
            Image.fromarray(levels).resize((40, 30)).save(folder / name / f"{i:02}.png")
    return folder


def strips(folder: Path) -> Any:
    return np.stack([np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("*.png"))])


def test_real_images_are_edited_by_a_text_model(
    run: Run, tmp_path: Path, tiny_stable_diffusion: Path, pictures: Path, code: Path
) -> None:
    asked = (
        "--model", tiny_stable_diffusion, "--data", pictures, "--attribute", "bright/dark", "--examples", 10,
        "--step", 400, "--judge", f"{code}:bright", "--identity", f"distance:{code}:apart", "--work", tmp_path / "work",
        "--features", f"{code}:flat",
    )  # fmt: skip
    told = run("edit", "fit", *asked, *FAST, "--out", tmp_path / "fit", "--force", "--json").json
    assert {b["latent"] for b in told["boundaries"].values()} == {"z", "h"}
    apply = ("edit", "apply", "--boundary", tmp_path / "fit", "--work", tmp_path / "work")
    found = run(*apply, "--out", tmp_path / "a", "--count", 6, "--strengths", "0,8", "--json").json
    still, strong = found["strengths"]
    assert still["identity"] - strong["identity"] > 0
    assert "identity_pixels" not in still
    assert strips(tmp_path / "a" / "strength_0").shape == (6, 16, 16, 3)
    # Of strength 0 it is what the autoencoder, inversion and the way back make of the image.
    assert still["difference"] < strong["difference"]
    # Images of one's own, of any size, judged where a judge is named.
    own = run(
        *apply, "--out", tmp_path / "own", "--images", pictures / "dark", "--count", 3, "--strengths", "8", "--judge",
        f"{code}:bright", "--json",
    ).json  # fmt: skip
    assert strips(Path(own["files"]["pasted"]) / "strength_8").shape == (3, 30, 40, 3)
    assert 0 <= own["strengths"][0]["success"] <= 1
    prompted = (*asked, "--prompt", "a red cat", "--guidance", 2)
    run("edit", "fit", *prompted, *FAST, "--out", tmp_path / "prompted", "--force")
    run("edit", "apply", "--boundary", tmp_path / "prompted", "--out", tmp_path / "p", "--no-judge", "--count", 6,
        "--strengths", "0", "--work", tmp_path / "work")  # fmt: skip
    assert np.abs(strips(tmp_path / "p" / "strength_0") - strips(tmp_path / "a" / "strength_0")).max() > 3


def test_a_boundary_is_fitted_to_what_a_text_model_makes(
    run: Run, tmp_path: Path, tiny_stable_diffusion: Path, pictures: Path, code: Path
) -> None:
    asked = (
        "--model", "digits-ddpm", "--text-model", tiny_stable_diffusion, "--text-way", "ddim/uniform-t@3",
        "--positive-prompt", "a red cat", "--negative-prompt", "a blue dog, far away", "--guidance", 3,
        "--examples", 12, "--step", 500, "--latent", "z", "--judge", f"{code}:bright", "--work", tmp_path / "work",
    )  # fmt: skip
    for name, source in (("images", ("--data", "digits")), ("samples", ("--source", "samples"))):
        fitted = tmp_path / name
        told = run("edit", "fit", *asked, *source, *FAST, "--out", fitted, "--force", "--json").json
        assert told["boundaries"]["z"]["attribute"] == "prompted"
        assert "text_model" in json.loads((fitted / "subject.json").read_text())
        found = run(
            "edit", "apply", "--boundary", fitted, "--out", tmp_path / f"{name}-a", "--count", 5, "--strengths",
            "0,4", "--work", tmp_path / "work", "--json",
        ).json  # fmt: skip
        assert found["images"] == 5
        assert found["strengths"][0]["identity"] > found["strengths"][1]["identity"]
    normals = [(tmp_path / n / "z.safetensors").read_bytes() for n in ("images", "samples")]
    # One boundary, whatever is edited by it.
    assert normals[0] == normals[1]
