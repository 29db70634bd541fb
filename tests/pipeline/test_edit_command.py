"""`fewstep edit`: the whole way on the digits model, by text, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.tasks.data import bundled as data
from fewstep.tasks.models.classifier import SmallClassifier
from fewstep.tasks.models.files import ZOO

JUDGE = ZOO / "digits-ddpm" / "classifier"
WAYS = ("--inversion", "dpm-solver-2m/uniform-t@6", "--generation", "dpmpp-2m/uniform-t@6")
Run = Callable[..., Any]


def fit(run: Run, out: Path, *more: object) -> Any:
    asked = ("--model", "digits-ddpm", "--data", "digits", "--attribute", "nine", "--examples", 24, "--judge", JUDGE)
    fast = ("--fit-way", "dpm-solver-2m/uniform-t@6", "--work", out.parent / "work")
    return run("edit", "fit", *asked, *fast, *WAYS, "--out", out, "--json", *more)


def test_fit_then_apply(run: Run, tmp_path: Path) -> None:
    told = fit(run, tmp_path / "nine", "--step", 600).json
    assert told["time"] == pytest.approx(600)
    assert set(told["boundaries"]) == {"z", "h"}
    assert all(0.6 < fact["accuracy"] <= 1 for fact in told["boundaries"].values())
    applied = run(
        "edit", "apply", "--boundary", tmp_path / "nine", "--out", tmp_path / "edited", "--strengths", "0,6",
        "--count", 12, "--work", tmp_path / "work", "--json",
    ).json  # fmt: skip
    still, strong = applied["strengths"]
    assert strong["success"] > still["success"]
    assert still["identity"] > strong["identity"]
    # Of strength 0 it is what inversion and the way back alone cost.
    assert 0 < still["difference"] < strong["difference"]
    assert (still["nfe"], applied["images"]) == (12, 12)
    assert len(list((tmp_path / "edited" / "strength_6").glob("*.png"))) == 12
    assert Image.open(applied["files"]["grid.png"]).size[0] > 300


def test_own_images_of_any_size_are_edited(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(run, tmp_path / "nine", "--step", "lambda=-1.5", "--latent", "z")
    apply = ("edit", "apply", "--boundary", tmp_path / "nine", "--out", tmp_path / "own", "--work", tmp_path / "work")
    for size, name in (((8, 8), "right"), ((300, 400), "large")):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full(size, 60 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    told = run(*apply, "--images", tmp_path / "right", "--strengths", "2", "--json").json
    assert told["images"] == 3
    assert "pasted" not in told["files"]
    assert not caplog.messages
    (tmp_path / "right" / "notes.txt").write_text("")
    told = run(*apply, "--images", tmp_path / "right", "--strengths", "2", "--count", 2, "--json").json
    assert told["images"] == 2
    left_out, more = caplog.messages
    assert "1 files skipped: 1 .txt" in left_out
    assert "first 2 of 3 images are used" in more
    told = run(*apply, "--images", tmp_path / "large", "--strengths", "2", "--json").json
    assert told["images"] == 3
    assert "3 resized and cropped" in caplog.messages[-1]
    whole = np.asarray(Image.open(Path(told["files"]["pasted"]) / "strength_2" / "000001.png"))
    small = np.asarray(Image.open(tmp_path / "own" / "strength_2" / "000001.png")).astype(int)
    assert whole.shape == (300, 400)
    # What the model did not see is untouched; in the square that it saw, its change is found again.
    assert set(np.unique(whole[:, :50])) == set(np.unique(whole[:, 350:])) == {60}
    seen = whole[:, 50:350].astype(int)
    means = seen[:296, :296].reshape(8, 37, 8, 37).mean((1, 3))
    assert np.corrcoef(means.ravel(), small.ravel())[0, 1] > 0.9


def test_the_step_is_found_where_none_is_given(run: Run, tmp_path: Path) -> None:
    told = fit(run, tmp_path / "nine", "--latent", "z").json
    assert 0 < told["time"] < 999
    assert json.loads((tmp_path / "nine" / "edit.json").read_text())["step"] == told["step"]


@pytest.mark.slow
def test_search_and_apply_what_was_found(run: Run, tmp_path: Path) -> None:
    small = (
        "--budget", 300, "--screen-images", 4, "--final-images", 6, "--report-images", 8, "--examples", 12,
        "--fit-way", "dpm-solver-2m/uniform-t@4", "--steps", 4, "--judge", JUDGE, "--work", tmp_path / "work",
    )  # fmt: skip
    asked = ("--model", "digits-ddpm", "--data", "digits")
    search = ("edit", "search", *asked, "--attribute", "nine", "--out", tmp_path / "s", *small)
    run(*search, "--strip", 1).refused("--strip 1")
    told = run(*search, "--strip", 3, "--json").json
    assert {"success", "identity", "frechet"} <= set(told["figures"])
    assert all(Path(path).is_file() for path in told["files"].values())
    strip = json.loads((tmp_path / "s" / "strengths" / "strengths.json").read_text())
    assert [s / strip["own"] for s in strip["strengths"]] == pytest.approx([-1.0, 0.25, 1.5])
    assert {path.name for path in (tmp_path / "s" / "strengths").glob("*.png")} == set(strip["files"])
    assert told["calls_of_pictures"] > 0
    run(*search).refused("--resume")
    assert (
        run("edit", "search", "--resume", "--out", tmp_path / "s", "--work", tmp_path / "work", "--json").json["edit"]
        == told["edit"]
    )
    run(
        "edit", "apply", "--boundary", tmp_path / "s", "--out", tmp_path / "a", "--no-judge", "--count", 3,
        "--strengths", "1", "--work", tmp_path / "work",
    )  # fmt: skip
    assert (tmp_path / "a" / "grid.png").is_file()


def test_text_edits_come_from_two_prompts(run: Run, tmp_path: Path, tiny_stable_diffusion: Path) -> None:
    torch.manual_seed(0)
    judge = SmallClassifier(3, 16, 2, width=8, feature_dim=8)
    with torch.no_grad():
        judge.head.weight.zero_()
        judge.head.bias.copy_(torch.tensor([1.0, 0.0]))
    # Nothing that an untrained pipeline makes has the attribute.
    judge.save(tmp_path / "features")
    asked = (
        "--model", tiny_stable_diffusion, "--source", "text", "--prompt", "a cat", "--positive-prompt", "a red cat",
        "--negative-prompt", "a blue cat", "--guidance", 2, "--features", tmp_path / "features", "--examples", 10,
        "--judge", tmp_path / "features", "--fit-way", "ddim/uniform-t@3", "--work", tmp_path / "work",
        "--inversion", "ddim/uniform-t@3", "--generation", "ddim/uniform-t@3", "--step", 400,
    )  # fmt: skip
    told = run("edit", "fit", *asked, "--out", tmp_path / "fit", "--force", "--json").json
    assert set(told["boundaries"]) == {"z", "h"}
    applied = run(
        "edit", "apply", "--boundary", tmp_path / "fit", "--out", tmp_path / "a", "--count", 4, "--strengths", "0,8",
        "--work", tmp_path / "work", "--json",
    ).json  # fmt: skip
    still, strong = (
        np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "a" / f"strength_{s}").glob("*"))])
        for s in (0, 8)
    )
    assert still.shape == (4, 16, 16, 3)
    assert np.abs(still.astype(int) - strong).max() > 5
    assert applied["strengths"][0]["identity"] == pytest.approx(1, abs=0.15)


WITH_FASHION = pytest.mark.skipif(
    not Path(data.FASHION_FOLDERS[0]).is_dir(), reason="dataset-fashion-mnist is not installed"
)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--attribute", "wings"), ("unknown attribute 'wings'", "nine")),
        (("--step", "soon"), ("step 'soon'", "lambda=-1.2")),
        (("--step", "5000"), ("outside the model's range",)),
        pytest.param(("--data", "fashion", "--attribute", "boot"), ("1x28x28", "1x8x8"), marks=WITH_FASHION),
        (("--source", "text"), ("prompts",)),
        (("--inversion", "ddim"), ("ddim",)),
        (("--generation", "ddim/nowhere@6"), ("unknown grid 'nowhere'",)),
        (("--guidance", 3), ("guidance 3 leads towards a prompt, and there is none",)),
        (("--prompt", "a nine"), ("takes no prompts",)),
        (("--positive-prompt", "a nine"), ("--text-model",)),
        (("--text-way", "ddim/uniform-t@5"), ("text_way is how a --text-model",)),
        (("--text-call", "height=64"), ("text_call is how a --text-model",)),
        (("--text-model", "digits-ddpm"), ("two prompts",)),
        (("--eta-window", "0:0.5"), ("give --eta",)),
        (("--latent", "h", "--rescale"), ("only h is moved",)),
        (("--judge-steps", 2500), ("--judge train",)),
        (("--judge", "nobody"), ("no judge 'nobody'",)),
        (("--judge-positive", "ten"), ("has no label 'ten'",)),
        (("--identity", "likeness"), ("unknown identity 'likeness'",)),
        (("--features", "nothing"), ("unknown features 'nothing'",)),
        (("--examples", 100_000), ()),
    ],
)
def test_bad_input_is_refused_in_one_line(run: Run, tmp_path: Path, more: tuple[object, ...], words: object) -> None:
    answer = fit(run, tmp_path / "nine", "--step", 500, "--latent", "z", *more)
    if more[0] == "--examples":
        # More than there are: the boundary is made of all there are.
        assert answer.code == 0
        return
    answer.refused(*words)  # type: ignore[misc]
    assert not (tmp_path / "nine").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--step", 500, "--steps", 4), ("--steps are several",)),
        (("--population", 9), ("--population is that of --sampler nsgaii",)),
        (("--final-images", 4, "--screen-images", 4), ("final_images 4: give more than the 4",)),
        ((), ("say what judges success: --judge",)),
        (("--resume", "--budget", 9), ("--resume goes on with the stored settings",)),
        (("--keep", "nothing"), ("unknown decision 'nothing'",)),
    ],
)
def test_a_search_that_would_drop_an_option_is_refused(
    run: Run, tmp_path: Path, more: tuple[object, ...], words: object
) -> None:
    out, judge = tmp_path / "s", () if not more else ("--judge", JUDGE)
    asked = () if "--resume" in more else ("--model", "digits-ddpm", "--data", "digits", "--attribute", "nine", *judge)
    answer = run("edit", "search", *asked, "--out", out, "--work", tmp_path / "work", *more)
    answer.refused(*words)  # type: ignore[misc]
    assert not list(tmp_path.rglob("*.parquet"))


def test_what_applies_an_edit_needs_a_judge_or_says_that_it_is_not_judged(run: Run, tmp_path: Path) -> None:
    asked = ("--model", "digits-ddpm", "--data", "digits", "--attribute", "nine", "--examples", 8, "--step", 500)
    fast = ("--fit-way", "ddim/uniform-t@3", "--inversion", "ddim/uniform-t@3", "--generation", "ddim/uniform-t@3")
    run("edit", "fit", *asked, *fast, "--latent", "z", "--work", tmp_path / "w", "--out", tmp_path / "f", "--force")
    apply = ("edit", "apply", "--boundary", tmp_path / "f", "--out", tmp_path / "a", "--work", tmp_path / "w")
    run(*apply, "--count", 3).refused("say what judges success: --judge", "--judge train")
    run(*apply, "--no-judge", "--identity", "perceptual").refused("--no-judge measures nothing: leave --identity out")
    assert not (tmp_path / "a").exists()
    run(*apply, "--count", 3, "--no-judge", "--strengths", "1")
    assert not list((tmp_path / "w").glob("judge-*"))
    found = [
        run(*apply, "--count", 3, "--strengths", "2", "--judge", JUDGE, *more, "--json").json["strengths"][0]
        for more in ((), ("--identity", "perceptual"))
    ]
    assert found[0]["success"] == found[1]["success"]
    assert found[0]["identity"] != found[1]["identity"]
    assert "identity_pixels" in found[0]
    assert "identity_pixels" not in found[1]


def test_an_attribute_with_too_few_examples_is_refused(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(9):
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    answer = run(
        "edit", "fit", "--model", "digits-ddpm", "--data", tmp_path / "data", "--attribute", "a/b", "--step", 500,
        "--work", tmp_path / "work", "--out", tmp_path / "f",
    )  # fmt: skip
    # A third of a folder is for fitting.
    answer.refused("3 images of class a", "at least 8")
    assert not (tmp_path / "f").exists()


def test_inseparable_sides_need_force(run: Run, tmp_path: Path) -> None:
    """One class cut in two at random."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    for name, start in (("a", 0), ("b", 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(60):
            pixels = np.asarray(images[2 * i + start] * 15, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i:03d}.png")
    asked = (
        "edit", "fit", "--model", "digits-ddpm", "--data", tmp_path / "data", "--attribute", "a/b", "--step", 500,
        "--latent", "z", "--examples", 20, "--fit-way", "ddim/uniform-t@3", "--work", tmp_path / "work", "--out",
        tmp_path / "f",
    )  # fmt: skip
    run(*asked).refused("near chance", "--force")
    assert run(*asked, "--force", "--json").json["boundaries"]["z"]["accuracy"] <= 0.6
