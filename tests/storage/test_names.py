"""A name that is taken is the name of one file in its folder, and can be logged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import TrackingError
from fewstep.storage.names import wrong_name, wrong_path
from fewstep.storage.store import Store
from fewstep.storage.tracking import default_tracking_uri, sync

REFUSED = [
    "",
    " ",
    ".",
    "..",
    "../../escape",
    "/etc/x",
    "a/b",
    "a\\b",
    "..\\b",
    "C:\\x",
    "a\0b",
    "a\nb",
    "a\rb",
    "a\u2028b",
    "\udcff",
    ".hidden",
    "a.",
    " a",
    "a ",
    "con",
    "NUL.txt",
    "x" * 121,
    "é" * 110,
]
TAKEN = ["search", 'it\'s "both"', "a`b", "50%", "größe—7 \U0001f600", "a" * 120, "-x", "a.b", "$(x); rm", "console"]


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_lead_elsewhere_or_nowhere_are_refused(name: str) -> None:
    assert wrong_name(name)
    assert wrong_path(f"folder/{name}") or name == "a/b"


@pytest.mark.parametrize("name", TAKEN)
def test_other_names_are_taken(name: str, tmp_path: Path) -> None:
    assert wrong_name(name) == ""
    (tmp_path / name).write_text("")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@given(st.text(max_size=130))
def test_whatever_is_taken_stays_in_its_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    if not wrong_name(name):
        folder = tmp_path_factory.mktemp("names")
        (folder / name).write_text("")
        assert [path.resolve().parent for path in folder.iterdir()] == [folder.resolve()]


@pytest.mark.parametrize("name", ["../x.txt", "/x.txt", "a/../../x.txt", "a//x.txt", "a\\x.txt"])
def test_artifacts_stay_in_theirs(name: str, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("x")
    with pytest.raises(TrackingError, match="cannot be an artifact's name"):
        sync(Store(tmp_path), "any", default_tracking_uri(tmp_path / "new"), {name: note})
    assert not (tmp_path / "new").exists()
