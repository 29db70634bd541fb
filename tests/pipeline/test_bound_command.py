"""`fewstep bound`: where the truth is known it holds, for a model every term says what it is, mistakes are one line."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewstep.pipeline.commands import bound
from fewstep.tasks.data import load_dataset
from fewstep.tasks.flow import tightness
from fewstep.tasks.models.files import ZOO

Run = Callable[..., Any]
QUICK = ("--images", 24, "--points", 8, "--times", 4, "--iterations", 3)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


@pytest.fixture(scope="session")
def latent(tmp_path_factory: pytest.TempPathFactory, make_tiny_flow: Callable[..., Path]) -> Path:
    """Directory of an untrained flow on 2x4x4 latents of the digits, with labels; its recipe says so."""
    folder = make_tiny_flow(tmp_path_factory.mktemp("latent") / "digits", features=False, scaling_factor=0.8)
    shutil.copy(ZOO / "digits-ddpm" / "recipe.json", folder)
    return folder


def test_it_holds_where_the_truth_is_known(run: Run, tmp_path: Path) -> None:
    done = run("bound", "--mixtures", 8, "--csv", tmp_path / "b.csv", "--plot", tmp_path / "b.png", "--json")
    assert done.code == 0
    answer = json.loads(done.out)
    assert (answer["cases"], answer["held"]) == (8, 8)
    rows = table(tmp_path / "b.csv")
    assert [int(row["case"]) for row in rows] == list(range(8))
    for row in rows:
        assert float(row["truth"]) <= float(row["bound"])
        assert float(row["bound"]) >= float(row["reconstruction"])
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert "# command: fewstep bound --mixtures 8" in (tmp_path / "b.csv").read_text()
    assert "held in 2 of 2" in run("bound", "--mixtures", 2).out


def test_a_bound_below_the_truth_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tightness.LinearCase, "true_w2", lambda self: 2 * self.bound().value)
    done = run("bound", "--mixtures", 3)
    assert done.code == 1
    assert "held in 0 of 3" in done.out


def terms_of(done: Any) -> dict[tuple[str, str], dict[str, Any]]:
    assert done.code == 0, done.err
    return {(t["term"], t["law"]): t for t in json.loads(done.out)["terms"]}


def test_a_latent_model_has_every_term(run: Run, latent: Path, tmp_path: Path) -> None:
    """And the certified constants are above the sampled ones; bounds are made of the terms."""
    done = run("bound", latent, *QUICK, "--labels", "balanced", "--csv", tmp_path / "b.csv", "--json")
    terms = terms_of(done)
    law = "training"  # the digits have no held-out images
    r = terms["reconstruction error", law]
    loss, error = terms["flow-matching loss", law], terms["velocity error", law]
    decoder, velocity = (terms[f"Lipschitz constant, {part}", law] for part in ("decoder", "velocity"))
    for part, sampled in (("decoder", decoder), ("velocity", velocity)):
        most = terms[f"Lipschitz constant, {part}", "any"]
        assert (most["says"], sampled["says"]) == ("certified", "at least")
        assert 0 < sampled["value"] < most["value"] == sampled["high"]
    assert terms["growth rate, velocity", law]["value"] <= velocity["value"]
    for term in (r, loss, error):
        assert term["low"] < term["value"] < term["high"]
    assert error["value"] < loss["value"]
    quarters = [terms[f"velocity error, t {k / 4:g} to {(k + 1) / 4:g}", law]["value"] for k in range(4)]
    assert sum(quarters) / 4 == pytest.approx(error["value"])
    for of, through in (("loss", loss), ("error", error)):
        whole = terms[f"bound, sampled constants, {of}", law]
        made = r["value"] + decoder["value"] * math.sqrt(math.exp(1 + 2 * velocity["value"]) * through["value"])
        assert whole["value"] == pytest.approx(made)
        assert whole["low"] < whole["value"] < whole["high"]
    sharp, profile = (
        terms[f"bound, {form}", law]["value"]
        for form in ("without Young's inequality", "by growth rate and error at t")
    )
    assert r["value"] < profile < sharp < terms["bound, sampled constants, error", law]["value"]
    assert terms["bound, certified constants, loss", law]["log10"] > 3
    assert terms["greatest distance of two images", "any"]["value"] == pytest.approx(16)
    rows = table(tmp_path / "b.csv")
    assert [(row["term"], row["law"]) for row in rows] == list(terms)


def test_a_model_of_pixels_has_no_decoder_to_bound(run: Run) -> None:
    done = run("bound", "digits-ddpm", *QUICK, "--json")
    terms = terms_of(done)
    assert terms["reconstruction error", "training"]["value"] == 0
    assert terms["Lipschitz constant, decoder", "any"]["value"] == 1
    assert terms["Lipschitz constant, velocity", "any"]["value"] is None
    (note,) = json.loads(done.out)["notes"]
    assert "predicts a flow's velocity" in note


def test_people_get_a_table(run: Run, latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- bound:begin -->\n<!-- bound:end -->\nbelow\n")
    out = run("bound", latent, *QUICK, "--markdown", page).out
    assert "| velocity error | 24 training |" in page.read_text()
    for words in ("Wasserstein-2 bound", "reconstruction", "certified: at most", "not certified"):
        assert words in out


@pytest.mark.parametrize(
    ("value", "log10", "words"), [(1.5, 0.2, "1.5"), (math.inf, 400.25, "10^400.2"), (math.inf, math.inf, "infinite")]
)
def test_figures_that_are_no_doubles(value: float, log10: float, words: str) -> None:
    assert bound._figure(value, log10) == words


def test_a_folder_of_images_is_held_out(run: Run, latent: Path, tmp_path: Path) -> None:
    for i, image in enumerate(load_dataset("digits").images[:12]):
        Image.fromarray(((image[0] + 1) * 127.5).astype("uint8")).save(tmp_path / f"{i:02}.png")
    quick = ("--images", 12, "--points", 4, "--times", 2, "--iterations", 2)
    done = run("bound", latent, *quick, "--data", tmp_path, "--json")
    assert {law for _, law in terms_of(done)} == {"held-out", "any"}
    assert any("no velocity error" in note for note in json.loads(done.out)["notes"])
    assert "has no labels" in run("bound", latent, *quick, "--data", tmp_path, "--labels", "balanced").err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either a model or --mixtures"),
        (("digits-ddpm", "--mixtures", 3), "either a model or --mixtures"),
        (("digits-ddpm", "--plot", "x.png"), "--plot draws the tightness"),
        (("--mixtures", 3, "--markdown", "x.md"), "--markdown shows"),
        (("digits-ddpm", "--images", 10), "at least two for each time"),
        (("digits-ddpm", "--labels", "3"), "without labels"),
        (("digits-ddpm", "--data", "fashion"), "fashion"),
        (("no-such-model",), "no model 'no-such-model'"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: tuple[Any, ...], words: str) -> None:
    run("bound", *arguments).refused(words)


def test_models_that_cannot_be_bounded(run: Run, tiny_ddpm: Path, tiny_stable_diffusion: Path) -> None:
    assert "no recipe.json" in run("bound", tiny_ddpm).err
    assert "recipe.json" in run("bound", tiny_stable_diffusion).err
