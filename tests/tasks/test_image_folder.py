"""A folder is read whole, and what is left out is said in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.errors import DataError
from fewstep.tasks.data import load_image_folder
from fewstep.tasks.image_folder import SUFFIXES, class_folders


def picture(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path, "PNG")


def levels(folder: Path) -> list[int]:
    return [round((value + 1) * 127.5) for value in load_image_folder(folder, 1, 4)[:, 0, 0, 0].tolist()]


def test_links_hidden_folders_and_every_suffix_are_read_in_name_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    picture(tmp_path / "elsewhere" / "deep" / "x.png", 1)
    names = [f"n{i:02}{suffix.upper() if i % 2 else suffix}" for i, suffix in enumerate(SUFFIXES)]
    for i, name in enumerate([*names, ".hidden/a.png", "sub.png/b.jpeg", ".c.png"]):
        picture(folder / name, 10 + i)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "z.png").symlink_to(tmp_path / "elsewhere" / "deep" / "x.png")
    found = levels(folder)
    count = len(names)
    assert found == [12 + count, 10 + count, 1, *range(10, 10 + count), 11 + count, 1]
    (line,) = caplog.messages
    assert line == f"{folder}: of {count + 5} images 2 hidden, or in hidden folders"


def test_what_is_left_out_is_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "a.png")
    for name in ("b.txt", "deep/c.txt", "d.JSON", "e", ".DS_Store", "f.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "._a.png").write_bytes(b"\x00\x05\x16\x07 attributes of a.png")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "absent")
    for _ in range(2):
        assert levels(tmp_path) == [0]
    (line,) = caplog.messages
    skipped = "8 files skipped: 2 .txt, 1 .DS_Store, 1 .json, 1 .png, 1 .svg, 1 links to nothing, 1 others"
    assert line == f"{tmp_path}: {skipped}; 1 links to a folder above not followed"


def test_a_folder_of_other_things_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image in .*1 files skipped: 1 \.npy"):
        load_image_folder(tmp_path, 1, 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.symlink_to(p.with_name("absent")), "link to nothing"),
        (lambda p: p.symlink_to(p), "link to nothing"),
        (os.mkfifo, "no regular file"),
        (lambda p: p.write_bytes(b""), "cannot read"),
    ],
)
def test_a_file_that_is_no_image_by_what_it_is_is_named(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    picture(tmp_path / "a.png")
    make(tmp_path / "b.png")
    with pytest.raises(DataError, match=words) as refused:
        load_image_folder(tmp_path, 1, 4)
    assert str(tmp_path / "b.png") in str(refused.value)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_may_not_be_read_is_named(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "closed" / "b.png")
    closed = tmp_path / "closed" if what == "folder" else tmp_path / "closed" / "b.png"
    closed.chmod(0)
    if os.access(closed, os.R_OK):  # As root everything may be read.
        target, name = (os, "scandir") if what == "folder" else (Image, "open")
        real = getattr(target, name)

        def refuse(path: Path, **options: object) -> object:
            if Path(path) == closed:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, **options)

        monkeypatch.setattr(target, name, refuse)
    try:
        with pytest.raises(DataError, match=r"closed.*: Permission denied"):
            load_image_folder(tmp_path, 1, 4)
    finally:
        closed.chmod(0o700)


@pytest.mark.parametrize("name", ["absent", "a" * 300, "a\0b", "file"])
def test_what_is_no_folder_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="not a folder"):
        load_image_folder(tmp_path / name, 1, 4)


def test_more_images_than_memory_holds_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(DataError, match="1 images do not fit into memory"):
        load_image_folder(tmp_path, 1, 4)


def test_hidden_folders_and_files_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog", ".ipynb_checkpoints"):
        picture(tmp_path / name / "a.png")
    (tmp_path / "labels.csv").write_text("")
    assert [place.name for place in class_folders(tmp_path)] == ["cat", "dog"]
    (line,) = caplog.messages
    assert "2 entries beside the classes' folders skipped: 1 .csv, 1 .ipynb_checkpoints" in line
