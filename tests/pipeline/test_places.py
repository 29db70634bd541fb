"""Where results go is checked before anything is computed for them, and says what is wrong with it in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from fewstep.errors import ConfigurationError, StorageError
from fewstep.pipeline.cli import COMMANDS
from fewstep.pipeline.commands.options import drawable, folder, place, writable

Run = Callable[..., Any]
LONG = "n" * 250


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    (tmp_path / "a-file").write_text("kept")
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "to-nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "a-pipe")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["a-folder", "a-file/x.csv", "a-file/deep/x.csv", "to-nowhere/x.csv", "a-pipe", f"{LONG}.csv", "/proc/x.csv"],
)
def test_a_file_that_cannot_be_written_is_refused_by_name(here: Path, name: str) -> None:
    with pytest.raises(StorageError) as refused:
        writable(here / name)
    assert str(here / name) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["a-file", "a-file/deep", "to-nowhere", "to-nowhere/deep", "a-pipe", "n" * 300, "/proc/deep", "/dev/null"]
)
def test_a_folder_that_cannot_be_made_is_refused_by_name(here: Path, name: str) -> None:
    with pytest.raises(StorageError) as refused:
        folder(here / name)
    assert str(here / name) in str(refused.value)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_a_place_that_takes_nothing_is_refused_with_its_reason(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def taken(**options: object) -> None:
        raise error

    monkeypatch.setattr("tempfile.TemporaryFile", taken)
    for check in (writable, drawable, folder):
        with pytest.raises(StorageError, match=str(error.strerror)):
            check(here / "deep" / "x.png")


def test_a_good_place_is_left_as_it_was(here: Path) -> None:
    before = sorted(here.rglob("*"))
    for name in ("x.png", "a-file", "deep/er/x.png", "to-nowhere"):
        assert writable(here / name) == here / name
    for name in ("a-folder", "deep/er", "."):
        assert folder(here / name) == here / name
    assert (writable(None), drawable(None), folder(None)) == (None, None, None)
    assert sorted(here.rglob("*")) == before
    assert (here / "a-file").read_text() == "kept"


def test_an_empty_path_is_none(run: Run) -> None:
    with pytest.raises(ConfigurationError):
        place("")
    run("search", "--model", "digits-ddpm", "--out", "", "--dry-run").refused("path is empty")
    run("report", "--out", "").refused("path is empty")


# Options whose paths are read.
READ = {
    "study",
    "boundary",
    "images",
    "schedule",
    "file",
    ("report", "out"),
    ("dashboard", "out"),
    ("convert", "checkpoint"),
    ("convert", "vae"),
    ("schedule", "sources"),
}


def _paths() -> Iterator[tuple[str, str, Any]]:
    """(command, option, its declaration) of every option that is a path."""
    for name in (name for group in COMMANDS.values() for name in group):
        module = import_module(f"fewstep.pipeline.commands.{name}")
        functions = [c.callback for c in module.app.registered_commands] if hasattr(module, "app") else [module.command]
        for function in functions:
            for option, hint in get_type_hints(function, include_extras=True).items():
                declared = next((m for m in getattr(hint, "__metadata__", ()) if hasattr(m, "callback")), None)
                if declared is not None and "Path" in str(hint):
                    yield name, option, declared


def test_every_place_that_is_written_to_is_checked_before_the_work() -> None:
    paths = list(_paths())
    written = [(command, option, d) for command, option, d in paths if not {option, (command, option)} & READ]
    assert len(written) > 20
    for command, option, declared in written:
        assert declared.callback is not None, f"{command} --{option}"
        assert declared.parser is place, f"{command} --{option}"


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--model", "digits-ddpm", "--schedule", "ddim@3", "--out", "{}"),
        ("compare", "--model", "digits-ddpm", "--first", "ddim@3", "--second", "ddim@4", "--csv", "{}"),
        ("refine", "ddim@3", "--model", "digits-ddpm", "--to", "{}"),
        ("search", "--model", "digits-ddpm", "--out", "{}"),
        ("train", "digits-ddpm", "--checkpoints", "{}"),
        ("schedule", "import", "x.json", "--model", "digits-ddpm", "--out", "{}"),
        ("edit", "apply", "--boundary", "b", "--out", "{}"),
        ("report", "--out", "study", "--html", "{}"),
    ],
)
def test_a_command_refuses_it_and_does_nothing(run: Run, here: Path, words: tuple[str, ...]) -> None:
    before = sorted(here.rglob("*"))
    run(*(word.format(here / "a-file" / "x.json") for word in words)).refused(here / "a-file" / "x.json", "no folder")
    assert sorted(here.rglob("*")) == before


def test_a_place_that_is_not_named_is_checked_too(run: Run, here: Path) -> None:
    """The default lies in the working folder."""
    for name in ("runs", "models"):
        (here / name).write_text("in the way")
    run("search", "--model", "digits-ddpm").refused("runs", "no folder")
    run("evaluate", "--model", "digits-ddpm", "--schedule", "ddim@3").refused("runs", "no folder")
    run("train", "digits-ddpm").refused("models", "no folder")
