"""The page: self-contained, complete, escaped, the same for the same store, and not blank."""

from __future__ import annotations

import base64
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.dashboards.page import write_page
from fewstep.dashboards.results import FOUND, report_table
from fewstep.errors import ConfigurationError, DataError, StorageError
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.point import EditPoint, QuantizationPoint, joint, parse_point
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule.presets import preset
from fewstep.storage.records import EventRecord
from fewstep.storage.store import Store

LOADS = ("src", "href", "srcset", "data", "poster", "action", "xlink:href")


class Reader(HTMLParser):
    """Collects what a page loads, its words outside scripts, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in LOADS and value]
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_data(self, data):
        kind = self.tags[-1] if self.tags else ""
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem == "style":
            self.styles.append(data)
        elif kind:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(store, tmp_path):
    path = tmp_path / "page.html"
    assert write_page(store, "digits", path) == path
    return path


def pictures(reader: Reader) -> int:
    """How many schedules are drawn on the page."""
    return sum("half log-SNR" in script for script in reader.scripts if len(script) < 500_000)


def test_nothing_is_loaded_from_elsewhere(page):
    reader = Reader(page.read_text())
    assert [load for load in reader.loads if not load.startswith(("data:", "#"))] == []
    assert not {"link", "iframe", "object", "embed", "base"} & set(reader.tags)
    styles = " ".join(reader.styles)
    assert "url(" not in styles
    assert "@import" not in styles
    assert sum(len(script) > 1_000_000 for script in reader.scripts) == 1


def test_the_numbers_of_the_table_are_there(store, page):
    text = Reader(page.read_text()).text
    table = report_table(store, "digits")
    assert len(table) > 15
    for row in table.to_dict("records"):
        assert row["method"] in text
        for figure in ("value", "low", "high"):
            assert f"{row[figure]:.4g}" in text
    for fact in ("10,000 images", "digits-ddpm", "2026-01-02", "500000", "actor 1 ended", "torch 2.9.0"):
        assert fact in text
    assert "intervals apart" in text
    assert "−29.9 %" in text


def test_every_found_schedule_has_its_picture_and_json(store, page):
    reader = Reader(page.read_text())
    table = report_table(store, "digits")
    found = table[table["method"] == FOUND]
    assert len(found) == 3
    assert pictures(reader) == 3
    assert reader.tags.count("details") == 3
    text = "".join(reader.words)
    assert all(candidate in text for candidate in found["candidate"])
    assert text.count('"schema_version": 1') == 3
    assert len(reader.ids) == len(set(reader.ids))


def test_the_same_store_gives_the_same_page(store, page, tmp_path):
    again = write_page(Store(store.root), "digits", tmp_path / "again.html")
    assert again.read_bytes() == page.read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_study_without_a_report_gets_the_page_so_far(store, make_store, tmp_path):
    rows = [row for row in store.evaluations.records() if row.rung != "report"]
    other = Store(tmp_path / "other")
    other.evaluations.append(rows)
    reader = Reader(write_page(other, "digits", tmp_path / "page.html").read_text())
    assert "no results to compare" in reader.text
    assert "best schedules so far" in reader.text
    assert pictures(reader) == 3
    assert "out of <memory>" in reader.text


def test_a_study_of_screens_alone_gets_a_page_too(store, tmp_path):
    other = Store(tmp_path / "other")
    other.evaluations.append([row for row in store.evaluations.records() if row.rung == "distance"])
    assert "no results to compare" in Reader(write_page(other, "digits", tmp_path / "p.html").read_text()).text


def test_names_are_escaped(store, tmp_path):
    evil = "</script><img src=http://evil/x onerror=alert(1)>&amp;"
    settings = replace(store.studies.records()[0], study=evil, model=evil, settings_json=f'{{"{evil}": "{evil}"}}')
    other = Store(tmp_path / "other")
    other.studies.append([settings])
    rows = [row for row in store.evaluations.records() if row.rung == "report"]
    rows = [replace(row, study=evil, model=evil, features=evil, reference=evil) for row in rows]
    rows[1] = replace(rows[1], origin=f"preset:{evil}/{evil}", device=evil, versions={evil: evil})
    rows[2] = replace(rows[2], status="failed", error=evil)
    other.evaluations.append(rows)
    other.events.append([EventRecord(evil, 0, evil, evil, rows[0].finished_at)])
    picture = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(picture)
    text = write_page(other, evil, tmp_path / "page.html", {evil: picture}).read_text()
    reader = Reader(text)
    assert evil in reader.text
    assert reader.tags.count("img") == 1
    assert [load for load in reader.loads if not load.startswith("data:")] == []
    assert text.count("<img src=http") == 0


def test_images_are_embedded(store, tmp_path):
    picture = tmp_path / "grid.png"
    Image.new("RGB", (4, 3), "red").save(picture)
    reader = Reader(write_page(store, "digits", tmp_path / "page.html", {"samples": picture}).read_text())
    uri = next(load for load in reader.loads if load.startswith("data:image/png;base64,"))
    assert base64.b64decode(uri.partition(",")[2]) == picture.read_bytes()
    assert "samples" in reader.text


def test_damaged_files_are_named(store, tmp_path):
    whole = next(Path(store.root, "tables", "events").glob("*.parquet"))
    torn = whole.with_name("part-000000000099-0123abcd.parquet")
    torn.write_bytes(whole.read_bytes()[:100])
    text = Reader(write_page(store, "digits", tmp_path / "page.html").read_text()).text
    assert "1 damaged file left out" in text
    assert f"tables/events/{torn.name}" in text
    assert str(tmp_path) not in text


def test_a_candidate_of_another_kind_shows_its_json(store, tmp_path):
    row = next(row for row in store.evaluations.records() if row.origin.startswith("found"))
    other = Store(tmp_path / "other")
    other.evaluations.append([replace(row, candidate_json='{"bits": 4}')])
    reader = Reader(write_page(other, "digits", tmp_path / "page.html").read_text())
    assert pictures(reader) == 0
    assert '"bits": 4' in reader.text


def test_a_quantised_network_is_shown_with_its_schedule_and_its_size(store, tmp_path):
    config = QuantizationConfig(weight_bits=4)
    row = next(row for row in store.evaluations.records() if row.origin.startswith("found"))
    point = joint(parse_point(row.candidate_json), QuantizationPoint(config=config))
    other = Store(tmp_path / "other")
    shown = replace(row, candidate=point.hash, candidate_json=point.to_json(), metrics={"size_bytes": 1.25e6})
    other.evaluations.append([shown])
    reader = Reader(write_page(other, "digits", tmp_path / "page.html").read_text())
    assert pictures(reader) == 1
    text = "".join(reader.words)
    assert f"network {config.name}" in text
    assert "1.25 MB" in text
    assert '"kind": "joint"' in text
    assert '"weight_bits": 4' in text
    assert "JSON of the joint" in text
    assert "The schedules found" in text


@pytest.mark.parametrize("rung", ["report", "finals", "screen"])
def test_edits_are_shown_by_what_they_do(store, tmp_path, rung):
    way = preset("ddim", np.linspace(-5, 2, 4)).model_copy(update={"name": "my way"})
    edit = EditConfig(step=-1.0, strength_z=2.5, inversion=way, generation="ddim/uniform-t@6")
    point = EditPoint(edit=edit)
    row = next(row for row in store.evaluations.records() if row.origin.startswith("found"))
    figures = {"success": 0.75, "identity": 0.5}
    changes = {"candidate": point.hash, "candidate_json": point.to_json(), "metrics": figures, "metric": "imbalance"}
    origin = "found:tpe" if rung == "report" else "tpe"
    other = Store(tmp_path / "other")
    other.evaluations.append([replace(row, **changes, rung=rung, origin=origin)])
    reader = Reader(write_page(other, "digits", tmp_path / "page.html").read_text())
    assert pictures(reader) == 0
    text = "".join(reader.words)
    for words in ("z moved by 2.5", "by my way and ddim/uniform-t@6", "success 0.750", "identity 0.500"):
        assert words in text
    assert '"strength_z": 2.5' in text
    assert "JSON of the edit" in text
    assert ("The edits found" if rung == "report" else "The best edits so far") in text


def test_a_study_without_evaluations_is_refused(store, tmp_path):
    with pytest.raises(StorageError, match=r"no evaluations of study 'nobody'.*choose one of digits"):
        write_page(store, "nobody", tmp_path / "page.html")
    empty = Store(tmp_path / "empty")
    with pytest.raises(StorageError, match=r"choose one of \(none\), or run `fewstep search` first"):
        write_page(empty, "digits", tmp_path / "page.html")
    empty.studies.append(store.studies.records())
    with pytest.raises(StorageError, match=r"study 'digits' .*has no evaluations yet.*--resume"):
        write_page(empty, "digits", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_images_that_cannot_be_shown_are_refused(store, tmp_path):
    with pytest.raises(DataError, match=r"cannot read image .*none.png"):
        write_page(store, "digits", tmp_path / "page.html", {"samples": tmp_path / "none.png"})
    with pytest.raises(ConfigurationError, match=r"cannot show .*grid.npz"):
        write_page(store, "digits", tmp_path / "page.html", {"samples": tmp_path / "grid.npz"})
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        write_page(store, "digits", tmp_path / "file" / "page.html")


def test_pages_need_neither_torch_nor_ray():
    modules = "fewstep.dashboards.page, fewstep.dashboards.web.server"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=120).returncode == 0
