"""The live pages in a browser: every one draws without complaint, is readable and moves when a search writes."""

from __future__ import annotations

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


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Studies of three spaces, with pictures and a grid's table beside one of them."""
    for name in ("schedule", "joint", "edit-nsgaii"):
        shutil.copytree(STORED / name, tmp_path / "runs" / name)
    (tmp_path / "runs" / "schedule" / "schedules").mkdir()
    for nfe in (3, 4):
        grid = Image.fromarray(np.full((40, 120, 3), 60 * nfe, dtype=np.uint8))
        grid.save(tmp_path / "runs" / "schedule" / "schedules" / f"nfe{nfe}.png")
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
    assert page.evaluate(SMALL_TEXT) == [], address
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
    if SHOTS and name:
        page.screenshot(path=f"{SHOTS}/dashboard_{name}.png")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_every_page_in_a_browser(runs: Path, address: str) -> None:
    complaints: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        wide = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
        phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        for page in (wide, phone):
            page.set_default_timeout(120_000)
            page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
        opened(wide, address, "studies")
        links = {a.inner_text().split(" ")[0]: a.get_attribute("href") for a in wide.locator("tbody th a").all()}
        schedule = address + links["schedule"]
        for place in (schedule, f"{schedule}/schedules", f"{schedule}/grid", address + links["edit-nsgaii"]):
            opened(phone, place)
        backgrounds = [page.evaluate("getComputedStyle(document.body).backgroundColor") for page in (wide, phone)]
        light, dark = (sum(map(int, re.findall(r"\d+", text)[:3])) for text in backgrounds)
        assert light > 600
        assert dark < 150

        _marks_in_all_pictures(wide, f"{address}{links['joint']}/fronts")
        _compares_by_keyboard(wide, schedule)
        _filters_by_keyboard(wide, schedule)
        _slides(wide, schedule)
        _shows_what_a_search_writes(wide, schedule, Store(runs / "schedule"))
        browser.close()
    assert complaints == []


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


def _shows_what_a_search_writes(page: Any, schedule: str, store: Store) -> None:
    opened(page, schedule, "study")
    assert "208" in page.locator("#facts").inner_text()
    (last,) = store.evaluations.records()[-1:]
    store.evaluations.append([replace(last, order=last.order + 1, key="new")])
    page.locator("#facts", has_text="209").wait_for()
