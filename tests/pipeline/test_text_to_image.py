"""A search on a Stable Diffusion directory, with prompts and guidance, through Ray, from the shell to a pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import fewstep
from fewstep.pipeline.commands.sample import command as sample
from fewstep.pipeline.proposers.base import is_known
from fewstep.pipeline.study import Study
from fewstep.tasks.models.classifier import SmallClassifier
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.noise import starting_noise

pytestmark = pytest.mark.slow
Run = Callable[..., Any]
PROMPTS = ["a red cat", "two dogs, blue", "the sea at night"]


@pytest.fixture(scope="module")
def searched(tiny_stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `study` and `prompts.txt`."""
    root = tmp_path_factory.mktemp("text-to-image")
    torch.manual_seed(0)
    SmallClassifier(3, 16, 4, width=8, feature_dim=8).save(root / "features")
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    asked = ("--model", tiny_stable_diffusion, "--prompts", root / "prompts.txt")
    sample(
        model=str(tiny_stable_diffusion), prompts=str(root / "prompts.txt"), guidance=4.0,
        schedule="dpmpp-2m/uniform-t-zero@8", count=60, seed=7, out=root / "reference",
    )  # fmt: skip
    words = (
        "search", *asked, "--guidance", "1:8", "--nfe", 2, "--budget", 7_000, "--workers", 2,
        "--preset-images", 16, "--screen", "distance", "--refine", 0,
        "--features", root / "features", "--reference", root / "reference", "--teacher", "dpmpp-2m/karras-zero@8",
        "--distance-images", 16, "--frechet-images", 250, "--finalist-images", 300, "--report-images", 250,
        "--decisions", "start,threshold,skips", "--out", root / "study", "--json",
    )  # fmt: skip
    command = [sys.executable, "-P", "-m", "fewstep.pipeline.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return root


def test_guidance_and_the_other_decisions_are_searched(searched: Path) -> None:
    records = Study.load(searched / "study").store.evaluations.records()
    own = [json.loads(r.candidate_json)["schedule"] for r in records if not is_known(r.origin)]
    scales = {fields.get("guidance") for fields in own}
    assert len(scales - {None}) > 5
    assert all(1 <= scale <= 8 for scale in scales if scale is not None)
    assert any(fields.get("skips") for fields in own)
    assert {fields["threshold"]["kind"] for fields in own if fields.get("threshold")} <= {"static", "dynamic"}
    assert {r.rung for r in records if r.status == "complete"} == {"presets", "distance", "frechet", "finals", "report"}


def test_conditions_are_part_of_what_an_evaluation_is(searched: Path) -> None:
    study = Study.load(searched / "study")
    assert study.settings.conditions.prompt_list == tuple(PROMPTS)
    assert study.settings.conditions.guidance == 4.5
    assert study.settings.guidance_range == (1.0, 8.0)


def test_the_exported_winner_makes_the_same_images_in_the_pipeline(
    run: Run, searched: Path, tiny_stable_diffusion: Path
) -> None:
    study = Study.load(searched / "study")
    path = study.schedules()[2]
    schedule = fewstep.load_schedule(path)
    printed = run("export", "--study", searched / "study", "--out", searched / "scheduler")
    assert "FewStepScheduler.from_pretrained" in printed.out
    sampled = run(
        "sample", "--model", tiny_stable_diffusion, "--schedule", path, "--prompts", searched / "prompts.txt",
        "--guidance", 4.5, "--count", 3, "--seed", 0, "--out", searched / "own",
    )  # fmt: skip
    assert sampled.code == 0, sampled.err
    own = np.stack([np.asarray(Image.open(p)) for p in sorted((searched / "own").glob("*.png"))])
    pipeline = StableDiffusionPipeline.from_pretrained(str(tiny_stable_diffusion))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = fewstep.FewStepScheduler.from_pretrained(str(searched / "scheduler"))
    if schedule.skips:
        from fewstep.tasks.models.skips import attach_skips

        attach_skips(pipeline.unet, schedule.skips)
    images = pipeline(
        prompt=PROMPTS,
        guidance_scale=4.5 if schedule.guidance is None else schedule.guidance,
        num_inference_steps=2,
        latents=starting_noise(0, 0, 3, find_model(str(tiny_stable_diffusion)).shape, "cpu"),
        height=16,
        width=16,
        output_type="np",
    ).images
    assert np.abs(images * 255 - own).max() <= 1.0
