"""Folders, statistics, prompts, schedules and study files of a user, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.pipeline.study_file import read_study_file
from fewstep.search_spaces.schedule import load_schedule
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import parse_schedule

SCHEDULE = "ddim/uniform-t-zero@3"


def evaluated(run: Callable[..., Any], toy: Path, reference: Path, schedule: str | Path = SCHEDULE) -> Any:
    return run(
        *("evaluate", "--model", toy, "--schedule", schedule, "--images", 8, "--reference", reference),
        *("--out", "e", "--json"),
    )


def test_a_picture_gives_the_same_figure_in_8_and_in_16_bits(run: Callable[..., Any], toy: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        levels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        wide = levels.astype(np.uint16) * 257
        for name, pixels in (("8/a.png", levels), ("16/a.png", wide), ("tiff/a.tif", wide)):
            path = Path(name).with_stem(f"{i:02}")
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path)
    first, *others = (evaluated(run, toy, Path(kind)).json["value"] for kind in ("8", "16", "tiff"))
    assert others == [first, first]


def test_references_that_are_none_are_refused_before_anything_is_sampled(run: Callable[..., Any], toy: Path) -> None:
    np.savez("negative.npz", mu=np.zeros(32), sigma=-np.eye(32))
    Path("damaged").mkdir()
    Path("damaged/a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x04IHDR")
    evaluated(run, toy, Path("negative.npz")).refused("negative.npz", "eigenvalues down to -1")
    evaluated(run, toy, Path("damaged")).refused("damaged/a.png")
    assert not Path("e/tables/moments").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_schedules_and_study_files_may_carry_a_byte_order_mark(
    encoding: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    schedule = parse_schedule(SCHEDULE, find_model(str(toy)).noise)
    Path("s.json").write_text(schedule.to_json(indent=2).replace("\n", "\r\n"), encoding=encoding, newline="")
    assert load_schedule("s.json") == schedule
    Path("prompts.txt").write_text("a cat\u2028here\r\ntwo dögs\r\n", encoding=encoding, newline="")
    text = f'model = "{toy}"\nnfes = [3]\n[conditions]\nprompts = "prompts.txt"\n'
    Path("study.toml").write_text(text.replace("\n", "\r\n"), encoding=encoding, newline="")
    fields = read_study_file(Path("study.toml"))
    assert fields["conditions"]["prompts"] == "a cat\u2028here\ntwo dögs\n"


def test_files_of_another_encoding_are_one_line(run: Callable[..., Any], toy: Path) -> None:
    Path("study.toml").write_bytes('# Größe\nmodel = "toy"\n'.encode("latin-1"))
    run("search", "study.toml").refused("study.toml", "byte 0xf6 at position 4, line 1")
    Path("s.json").write_bytes('{"name": "größer"}'.encode("cp1252"))
    evaluated(run, toy, toy / "reference.npz", Path("s.json")).refused("s.json", "byte 0xf6")
    Path("p.txt").write_bytes("ein Hündchen".encode("cp1252"))
    run("search", "--model", toy, "--prompts", "p.txt", "--print").refused("p.txt", "byte 0xfc at position 5")
    Path("deep.toml").write_text("a = " + "[" * 5000)
    run("search", "deep.toml").refused("deep.toml", "no TOML file")


def test_moments_of_images_are_measured_and_nothing_partial_is_left(run: Callable[..., Any], tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "images.npz", levels[..., None])
    asked = ("statistics", "--model", "digits-ddpm")
    told = run(*asked, "--data", "images.npz", "--out", "there/moments.npz", "--json").json
    assert told["images"] == 40
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["moments.npz"]
    run(*asked, "--out", "x.safetensors", "--address", "auto").refused("--address is for the images of --data")
