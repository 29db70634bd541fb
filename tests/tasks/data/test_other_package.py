"""A package of somebody else's adds a kind of data: one class, one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.tasks.data import SOURCES, load_images, open_source

SOURCE = """
import numpy as np
from fewstep.tasks.data import Record, Source

class Grey(Source):
    what = "levels, as 1+2+3.grey"

    def __init__(self, place):
        super().__init__(place)
        self.levels = [int(level) for level in place.removesuffix(".grey").split("+")]

    @classmethod
    def takes(cls, place):
        return place.endswith(".grey")

    def __len__(self):
        return len(self.levels)

    def read(self, indices):
        for i in indices:
            yield Record(f"level {i}", np.full((5, 9), self.levels[i], np.uint8), i)
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "grey_levels.py").write_text(SOURCE)
    info = tmp_path / "grey_levels-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grey-levels\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fewstep.data]\ngrey = grey_levels:Grey\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    SOURCES.__dict__.pop("_others", None)
    yield
    monkeypatch.undo()
    SOURCES.__dict__.pop("_others", None)


def test_a_kind_of_another_package_is_found_by_its_places_and_by_its_name() -> None:
    for place in ("0+255.grey", "grey:0+255"):
        images, labels = load_images(open_source(place), 1, 4)
        assert images[:, 0, 0, 0].tolist() == [-1, 1]
        assert labels.tolist() == [0, 1]
