"""The live pages in a browser: every one draws without complaint, is readable and moves when a search writes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from fewstep.dashboards.page import write_page
from fewstep.dashboards.web.app import make_app
from fewstep.storage.store import Store

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright's Python package")
CHROMIUM = shutil.which("chromium")
STORED = Path(__file__).parent.parent / "fixtures" / "studies"
PIVOT = "# command: fewstep grid --model digits-ddpm\nschedule,3,4\nddim/karras,10.5,5.6\nddim/beta,14.1,\n"
# Where the pictures of the documentation go, when they are made again.
SHOTS = os.environ.get("FEWSTEP_SHOTS", "")

SMALL_TEXT = """() => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    if (text && !["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)
        && parseFloat(getComputedStyle(element).fontSize) < 14) found.push(text.slice(0, 40));
  }
  return found;
}"""

SVGS = "document.querySelectorAll('.plotly-graph-div > .plot-container').length"
# Labels of one axis that lie on one another: no picture of ours may have such.
OVERLAPS = """() => {
  const found = [];
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    for (const axis of [".xtick", ".ytick", ".legendtext"]) {
      const boxes = [...plot.querySelectorAll(`${axis === ".legendtext" ? axis : axis + " text"}`)]
        .filter((text) => text.textContent.trim()).map((text) => [text.textContent, text.getBoundingClientRect()]);
      boxes.forEach(([name, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
        if (a.left + 1 < b.right && b.left + 1 < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)
          found.push(`${plot.id}: ${name} on ${other}`);
      }));
    }
  }
  return found;
}"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Studies of three spaces, with pictures and a grid's table beside one of them."""
    for name in ("schedule", "joint", "edit-nsgaii"):
        shutil.copytree(STORED / name, tmp_path / "runs" / name)
    (tmp_path / "runs" / "schedule" / "schedules").mkdir()
    for nfe in (3, 4):
        grid = Image.fromarray(np.full((40, 120, 3), 60 * nfe, dtype=np.uint8))
        grid.save(tmp_path / "runs" / "schedule" / "schedules" / f"nfe{nfe}.png")
    strip = tmp_path / "runs" / "edit-nsgaii" / "strengths"
    strip.mkdir()
    names = [f"strength-{k:02d}.png" for k in range(4)]
    for k, name in enumerate(names):
        Image.fromarray(np.full((80, 240), 60 * k, dtype=np.uint8)).save(strip / name)
    told = {"own": 3.0, "strengths": [-3.0, 0.0, 3.0, 4.5], "files": names}
    (strip / "strengths.json").write_text(json.dumps(told))
    (tmp_path / "runs" / "edit-nsgaii" / "grid.png").write_bytes((strip / names[0]).read_bytes())
    (tmp_path / "runs" / "schedule" / "pivot-fid-digits.csv").write_text(PIVOT)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(make_app([runs]), port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def opened(page: Any, address: str, name: str = "") -> None:
    """Open a page, wait until its figures are drawn, and look at what holds for every page."""
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    assert page.locator(".plot").count() == page.locator(".js-plotly-plot .main-svg").count() / 3, address
    readable(page, address)
    if SHOTS and name:
        page.screenshot(path=f"{SHOTS}/dashboard_{name}.png")


def readable(page: Any, address: str) -> None:
    assert page.evaluate(SMALL_TEXT) == [], address
    assert page.evaluate(OVERLAPS) == [], address
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address


def as_on(page: Any, scheme: str, width: int, height: int) -> int:
    """Show pages as a reader's device does; how light the paper is."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", paper)[:3]))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_every_page_in_a_browser(runs: Path, address: str) -> None:
    """The live pages and the page that is one file, in one browser: to start one costs more than a page."""
    report = write_page(Store(runs / "schedule"), "schedule", runs.parent / "report.html")
    complaints: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        opened(page, address, "studies")
        links = {a.inner_text().split(" ")[0]: a.get_attribute("href") for a in page.locator("tbody th a").all()}
        schedule, edit = address + links["schedule"], address + links["edit-nsgaii"]
        assert as_on(page, "dark", 390, 844) < 150
        for place in (schedule, f"{schedule}/schedules", f"{schedule}/grid", f"{schedule}/decisions", edit):
            opened(page, place)
        _is_one_file(page, report)
        assert as_on(page, "light", 1200, 900) > 600

        _marks_in_all_pictures(page, f"{address}{links['joint']}/fronts")
        _compares_by_keyboard(page, schedule)
        _filters_by_keyboard(page, schedule)
        _slides(page, schedule)
        _turns_to_other_strengths_by_keyboard(page, edit)
        _shows_what_a_search_writes(page, schedule, Store(runs / "schedule"))
        browser.close()
    assert complaints == []


def _is_one_file(page: Any, report: Path) -> None:
    """Every figure draws without a server, and the found line's colour is seen."""
    asked: list[str] = []
    page.on("request", listener := lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_function(f"document.querySelectorAll('.plotly-graph-div').length === {SVGS}")
    page.remove_listener("request", listener)
    assert page.locator(".plotly-graph-div").count() >= 4
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    readable(page, report.name)
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB"), dtype=np.int64)
    orange = np.abs(pixels - [213, 94, 0]).max(axis=2) < 12
    assert np.count_nonzero(orange.any(axis=1)) > 100


def _marks_in_all_pictures(page: Any, fronts: str) -> None:
    opened(page, fronts, "fronts")
    box = page.locator("input[data-candidate]").first
    box.check()
    chosen = "[...document.querySelectorAll('.plot')].map(p => p.data.flatMap(t => t.selectedpoints).length)"
    assert page.evaluate(chosen) == [1, 1]


def _compares_by_keyboard(page: Any, schedule: str) -> None:
    opened(page, f"{schedule}/schedules", "schedules")
    page.get_by_role("button", name="Compare").press("Enter")
    page.wait_for_url("**/compare?*")
    page.wait_for_selector("html[data-ready]")
    assert page.locator("tr.differs").count() > 0
    page.locator("h3 a").first.press("Enter")
    page.wait_for_url("**/candidates/*")
    assert page.locator("#schedule").count() == 1


def _filters_by_keyboard(page: Any, schedule: str) -> None:
    opened(page, f"{schedule}/trials", "trials")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(30):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if page.evaluate("document.activeElement.name") == "text":
            break
    page.keyboard.type("explodes")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=explodes*")
    assert page.locator("#matching").inner_text() == "4 of 208 evaluations"


def _slides(page: Any, schedule: str) -> None:
    opened(page, f"{schedule}/images")
    before = page.evaluate("document.querySelector('[data-slider]').style.getPropertyValue('--cut')")
    page.locator("#cut").press("ArrowLeft")
    after = page.evaluate("document.querySelector('[data-slider]').style.getPropertyValue('--cut')")
    assert (before, after) == ("50%", "49%")
    assert page.evaluate("[...document.querySelectorAll('.slider img')].every(image => image.naturalWidth === 120)")


def _turns_to_other_strengths_by_keyboard(page: Any, edit: str) -> None:
    opened(page, f"{edit}/images")
    seen = "[...document.querySelectorAll('.strip img')].filter(i => i.offsetParent && i.naturalWidth).map(i => i.alt)"
    told = []
    for key in ("", "ArrowRight", "Home"):
        if key:
            page.locator("#strength").press(key)
        told.append((page.locator("#strength-told").inner_text(), page.evaluate(seen)))
    assert [strength for strength, _ in told] == ["3", "4.5", "-3"]
    assert all(len(shown) == 1 and shown[0].endswith(f"strength {strength}") for strength, shown in told)


def _shows_what_a_search_writes(page: Any, schedule: str, store: Store) -> None:
    opened(page, schedule, "study")
    assert "208" in page.locator("#facts").inner_text()
    (last,) = store.evaluations.records()[-1:]
    store.evaluations.append([replace(last, order=last.order + 1, key="new")])
    page.locator("#facts", has_text="209").wait_for()
