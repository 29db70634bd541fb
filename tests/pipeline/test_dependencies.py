"""Values of one folder are of one content: what was replaced under its name is refused, with both hashes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.problems.edits import EditSettings
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
from fewstep.storage.records import EvaluationRecord, EventRecord, MomentsRecord
from fewstep.storage.store import Store
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.files import ZOO, find_model

HERE = ExecutionSettings(executor="in-process")
Change = Callable[[Path], object]


class StoppedError(Exception):
    """The end of a driver, from within."""


def _stop(_: EvaluationRecord) -> None:
    raise StoppedError


def _begin(study: Study) -> None:
    """Search until the first evaluation."""
    with pytest.raises(StoppedError):
        study.run(HERE, "test", _stop)


def _weights(path: Path) -> None:
    """Other weights of the same shapes."""
    from safetensors.torch import load_file, save_file

    save_file({name: value + 0.1 for name, value in load_file(path).items()}, path, metadata={"format": "pt"})


def _json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _moments(path: Path) -> None:
    stored = dict(np.load(path))
    np.savez(path, **(stored | {"mean": stored["mean"] + 0.1}))


@pytest.fixture(scope="module")
def searched(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `features`, `reference` and `begun`, a search of them that was stopped."""
    root = tmp_path_factory.mktemp("content")
    shutil.copytree(toy, root / "model")
    shutil.copytree(toy / "classifier", root / "features")
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8), np.uint8)
    (root / "reference").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / "reference" / f"{i:02}.png")
    given = {"features": str(root / "features"), "reference": str(root / "reference")}
    for name, changes in {"begun": {}, "given": given}.items():
        fields: dict[str, Any] = {"nfes": (3,), "budget": 30_000, "preset_images": 8, "sampler": "random"}
        _begin(Study(root / name, SearchSettings.build(model=str(root / "model"), **fields | changes)))
    return root


@pytest.fixture
def content(searched: Path, tmp_path: Path) -> Iterator[Path]:
    """The same; what a test changes in it is put back."""
    shutil.copytree(searched, tmp_path / "kept")
    yield searched
    shutil.rmtree(searched)
    shutil.copytree(tmp_path / "kept", searched)


CHANGES: dict[str, tuple[str, str, Change]] = {
    "weights": ("begun", "model", lambda p: _weights(p / "model/unet/diffusion_pytorch_model.safetensors")),
    "scheduler": ("begun", "scheduler", lambda p: _json(p / "model/scheduler/scheduler_config.json", beta_end=0.03)),
    "own classifier": ("begun", "features auto", lambda p: _weights(p / "model/classifier/model.safetensors")),
    "own reference": ("begun", "reference auto", lambda p: _moments(p / "model/reference.npz")),
    "classifier": ("given", "features", lambda p: _weights(p / "features/model.safetensors")),
    "image": ("given", "reference", lambda p: Image.new("L", (8, 8)).save(p / "reference/07.png")),
    "one image less": ("given", "reference", lambda p: (p / "reference/07.png").unlink()),
}


def _refused(call: Callable[[], object], what: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert "\n" not in str(caught.value)
    (line,) = [part for part in re.split("; |: ", str(caught.value)) if part.startswith(f"{what} ")]
    was, now = re.findall(r"was ([0-9a-f]{16}) and is now ([0-9a-f]{16})", line)[0]
    assert was != now


@pytest.mark.parametrize("case", CHANGES)
def test_what_was_replaced_under_a_study_is_refused_and_named(
    content: Path, case: str, run: Callable[..., Any]
) -> None:
    name, what, change = CHANGES[case]
    root = content / name
    before = Store(root).evaluations.records()
    change(content)
    _refused(lambda: Study.load(root).run(HERE, "test"), what)
    # Whoever else would add to the folder is refused too, in one line.
    model, given = content / "model", ()
    if name == "given":
        given = ("--features", content / "features", "--reference", content / "reference")
    shown = ("--schedule", "ddim/uniform-t-zero@3", "--images", 250)
    run("search", "--resume", "--out", root).refused(what, "is now")
    run("evaluate", "--model", model, *given, *shown, "--out", root).refused(what, "is now")
    assert Store(root).evaluations.records() == before


def test_equal_content_goes_on_also_where_files_were_written_again(content: Path) -> None:
    shutil.copytree(content / "model", content / "again")
    shutil.rmtree(content / "model")
    (content / "again").rename(content / "model")
    (content / "reference" / ".hidden").write_text("not an image")
    for name in ("begun", "given"):
        study, seen = Study.load(content / name), list[EvaluationRecord]()

        def two(record: EvaluationRecord, seen: list[EvaluationRecord] = seen) -> None:
            seen.append(record)
            if len(seen) == 2:
                raise StoppedError

        with pytest.raises(StoppedError):
            study.find(HERE, two)
        assert [r.order for r in study.records()] == [0, 1, 2]


@pytest.mark.parametrize("case", ["weights", "own reference"])
def test_a_study_of_before_there_were_hashes_is_completed_or_refused(content: Path, case: str) -> None:
    _, what, change = CHANGES[case]
    root, old = content / "begun", content / "old"
    (row,) = Store(root).studies.records()
    Store(old).studies.append([replace(row, hashes={})])
    Store(old).evaluations.append(Store(root).evaluations.records())
    shutil.copytree(old, content / "changed")
    with pytest.raises(StoppedError):
        Study.load(old).find(HERE, _stop)
    assert Store(old).studies.records() == [row]
    change(content)
    _refused(lambda: Study.load(content / "changed").find(HERE), what)


def test_values_of_two_networks_are_not_ranked_together(content: Path) -> None:
    store = Store(content / "begun")
    (record,) = store.evaluations.records()
    store.evaluations.append([replace(record, order=1, key="other", model_hash="0" * 16)])
    with pytest.raises(ConfigurationError, match=f"model was {'0' * 16} and is now {record.model_hash}"):
        Study.load(content / "begun").find(HERE)


def test_a_baseline_goes_on_with_what_it_began_with(content: Path, run: Callable[..., Any]) -> None:
    asked = ("baseline", "--model", content / "model", "--out", content / "base", "--nfe", 3, "--presets", "ddim")
    few = ("--grids", "uniform-t-zero", "--screen-images", 250, "--report-images", 250)
    assert run(*asked, *few, "--teacher", "ddim/uniform-t-zero@4").code == 0
    _weights(content / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    for more in ((), ("--partial",)):
        run(*asked, *few, "--teacher", "ddim/uniform-t-zero@4", *more).refused("model", "is now")


def test_nothing_is_added_to_a_folder_whose_study_cannot_be_read(content: Path, run: Callable[..., Any]) -> None:
    root = content / "begun"
    (torn,) = (root / "tables" / "studies").iterdir()
    torn.write_bytes(torn.read_bytes()[:-30])
    shutil.copytree(content / "model", content / "other")
    _weights(content / "other" / "unet" / "diffusion_pytorch_model.safetensors")
    model, other = ("--model", content / "model"), ("--model", content / "other")
    asked = ("--nfe", 3, "--budget", 30_000, "--preset-images", 8, "--sampler", "random", "--out", root)
    for command in (
        ("search", "--resume", "--out", root),
        ("search", *model, *asked),
        ("search", *other, *asked),
        ("evaluate", *other, "--schedule", "ddim/uniform-t-zero@3", "--images", 250, "--out", root),
        ("baseline", *other, "--nfe", 3, "--out", root),
        ("report", "--out", root),
    ):
        run(*command).refused(torn, "damaged", "restore it from a copy")
    assert len(Store(root).evaluations.records()) == 1
    # Without the file the values themselves say whose they are.
    torn.unlink()
    run("search", *other, *asked).refused("model", "is now")
    settings = SearchSettings.build(
        model=str(content / "model"), nfes=(3,), budget=30_000, preset_images=8, sampler="random"
    )
    with pytest.raises(StoppedError):
        Study(root, settings).find(HERE, _stop)
    assert [r.order for r in Store(root).evaluations.records()] == [0, 1]


def test_a_report_says_of_every_damaged_file_what_was_lost(content: Path, run: Callable[..., Any]) -> None:
    root, store = content / "begun", Store(content / "begun")
    (record,) = store.evaluations.records()
    store.evaluations.append([replace(record, order=1, key="another")])
    store.moments.append([MomentsRecord("base", 0, 250, 1, b"m", b"s")])
    store.events.append([EventRecord(record.study, 0, "note", "", record.finished_at)])
    files = {}
    for name, said in {"evaluations": "count as not done", "moments": "sampled again", "events": "no value"}.items():
        path = sorted((root / "tables" / name).iterdir())[-1]
        path.write_bytes(path.read_bytes()[:-1])
        files[path] = said
    answer = run("report", "--out", root)
    assert answer.code == 2
    (line,) = answer.err.splitlines()
    for path, said in files.items():
        (told,) = [part for part in line.split(f"{path} is damaged")[1:]]
        assert said in told.partition(" is damaged")[0]
    assert f"fewstep search --resume --out {root}" in line


EDIT_CHANGES: dict[str, tuple[str, Change]] = {
    "data": ("data", lambda p: Image.new("L", (8, 8)).save(p / "data/1/03.png")),
    "judge": ("judge", lambda p: _weights(p / "judge/model.safetensors")),
    "features": ("features auto", lambda p: _weights(p / "model/classifier/model.safetensors")),
    "weights": ("model", lambda p: _weights(p / "model/unet/diffusion_pytorch_model.safetensors")),
}


@pytest.mark.parametrize("case", EDIT_CHANGES)
def test_edits_are_of_one_content_too(toy: Path, tmp_path: Path, case: str) -> None:
    what, change = EDIT_CHANGES[case]
    shutil.copytree(toy, tmp_path / "model")
    shutil.copytree(ZOO / "digits-ddpm" / "classifier", tmp_path / "judge")
    number = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        for i in range(30):
            image = number.integers(60 * label, 120 + 60 * label, (8, 8), np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / str(label) / f"{i:02}.png")
    noise = find_model(str(toy)).noise
    subject = EditSubject.build(
        model=str(tmp_path / "model"),
        data=str(tmp_path / "data"),
        attribute="1/0",
        judge=str(tmp_path / "judge"),
        fit_way="ddim/uniform-t@3",
        examples=8,
    )
    step, ways = noise.lambda_at(500.0), {"inversion": "ddim/uniform-t@3", "generation": "ddim/uniform-t@3"}
    settings = EditSettings.build(
        study="edit",
        subject=subject,
        steps=(step,),
        base=EditConfig(step=step, boundary=BoundaryConfig(images=8), **ways),
        kept=("inversion", "generation"),
        screen_images=4,
        final_images=6,
        report_images=6,
        budget=500,
    )
    _begin(Study(tmp_path / "study", settings, tmp_path / "cache"))
    change(tmp_path)
    _refused(lambda: Study.load(tmp_path / "study", tmp_path / "cache").run(HERE, "test"), what)
