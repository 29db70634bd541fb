"""The bound of a trained model: every term says what it is, and what cannot be bounded is said in one line."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewstep.errors import FewstepError
from fewstep.tasks.data import load_dataset
from fewstep.tasks.flow.trained import Plan, Term, find_data, measure
from fewstep.tasks.models.files import ZOO, find_model

QUICK = {"images": 24, "points": 8, "times": 4, "iterations": 3}
Terms = dict[tuple[str, str], Term]


def measured(model: object, data: object = "auto", labels: str = "none", **plan: Any) -> tuple[Terms, tuple[str, ...]]:
    """The terms by name and law, and the notes."""
    files = find_model(str(model))
    found = measure(files, find_data(files, str(data)), Plan(**QUICK | plan), labels)
    return {(t.term, t.law): t for t in found.terms}, found.notes


@pytest.fixture(scope="session")
def latent(tmp_path_factory: pytest.TempPathFactory, make_tiny_flow: Callable[..., Path]) -> Path:
    """Directory of an untrained flow on 2x4x4 latents of the digits, with labels; its recipe says so."""
    folder = make_tiny_flow(tmp_path_factory.mktemp("latent") / "digits", features=False, scaling_factor=0.8)
    shutil.copy(ZOO / "digits-ddpm" / "recipe.json", folder)
    return folder


def test_a_latent_model_has_every_term(latent: Path) -> None:
    """And the certified constants are above the sampled ones; bounds are made of the terms."""
    terms, _ = measured(latent, labels="balanced")
    law = "training"  # the digits have no held-out images
    r = terms["reconstruction error", law]
    loss, error = terms["flow-matching loss", law], terms["velocity error", law]
    decoder, velocity = (terms[f"Lipschitz constant, {part}", law] for part in ("decoder", "velocity"))
    for part, sampled in (("decoder", decoder), ("velocity", velocity)):
        most = terms[f"Lipschitz constant, {part}", "any"]
        assert (most.says, sampled.says) == ("certified", "at least")
        assert 0 < sampled.value < most.value == sampled.high
    assert terms["growth rate, velocity", law].value <= velocity.value
    for term in (r, loss, error):
        assert term.low < term.value < term.high
    assert error.value < loss.value
    quarters = [terms[f"velocity error, t {k / 4:g} to {(k + 1) / 4:g}", law].value for k in range(4)]
    assert sum(quarters) / 4 == pytest.approx(error.value)
    for of, through in (("loss", loss), ("error", error)):
        whole = terms[f"bound, sampled constants, {of}", law]
        made = r.value + decoder.value * math.sqrt(math.exp(1 + 2 * velocity.value) * through.value)
        assert whole.value == pytest.approx(made)
        assert whole.low < whole.value < whole.high
    sharp, profile = (
        terms[f"bound, {form}", law].value for form in ("without Young's inequality", "by growth rate and error at t")
    )
    assert r.value < profile < sharp < terms["bound, sampled constants, error", law].value
    assert terms["bound, certified constants, loss", law].log10 > 3
    assert terms["greatest distance of two images", "any"].value == pytest.approx(16)


def test_a_model_of_pixels_has_no_decoder_to_bound() -> None:
    terms, (note,) = measured("digits-ddpm")
    assert terms["reconstruction error", "training"].value == 0
    assert terms["Lipschitz constant, decoder", "any"].value == 1
    assert terms["Lipschitz constant, velocity", "any"].value == math.inf
    assert "predicts a flow's velocity" in note


def test_a_folder_of_images_is_held_out(latent: Path, tmp_path: Path) -> None:
    for i, image in enumerate(load_dataset("digits").images[:12]):
        Image.fromarray(((image[0] + 1) * 127.5).astype("uint8")).save(tmp_path / f"{i:02}.png")
    quick = {"images": 12, "points": 4, "times": 2, "iterations": 2}
    terms, notes = measured(latent, tmp_path, **quick)
    assert {law for _, law in terms} == {"held-out", "any"}
    assert any("no velocity error" in note for note in notes)
    with pytest.raises(FewstepError, match="has no labels"):
        measured(latent, tmp_path, "balanced", **quick)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model": "digits-ddpm", "images": 10, "times": 32}, "at least two for each time"),
        ({"model": "digits-ddpm", "labels": "3"}, "without labels"),
        ({"model": "digits-ddpm", "data": "fashion"}, "fashion"),
        ({"model": "tiny_ddpm"}, "no recipe.json"),
        ({"model": "tiny_stable_diffusion"}, "recipe.json"),
    ],
)
def test_what_cannot_be_bounded(request: pytest.FixtureRequest, asked: dict[str, Any], words: str) -> None:
    if asked["model"].startswith("tiny"):
        asked = asked | {"model": request.getfixturevalue(asked["model"])}
    with pytest.raises(FewstepError, match=words):
        measured(**asked)
