"""MLflow's own pages of five studies in a browser: whether what docs/mlflow.md says is there, and its pictures.

    python -m benchmarks.mlflow_pages [--pictures docs/pictures] [--uri URI] [FOLDER ...]

Starts MLflow's server on this machine alone, logs the studies (by default copies of the stored ones of the tests), and
opens its pages in Debian's chromium: the view of all studies, one study with its description and picture, and two
studies compared. `ours` is how much of what the guide names the pages show, `theirs` all of it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from playwright.sync_api import Error, Page, Route, expect, sync_playwright

from benchmarks._line import emit
from benchmarks.tracking_server import Server
from fewstep.pipeline.publishing import log
from fewstep.pipeline.study import Study
from fewstep.storage.tracking import EXPERIMENT
from fewstep.storage.tracking_plan import KIND_TAG
from fewstep.storage.tracking_view import VIEW_ADDRESS, VIEW_NAME

STORED = Path(__file__).parent.parent / "tests" / "fixtures" / "studies"
STUDIES = ("schedule", "schedule-evolved", "schedule-tpe", "joint", "quantization")
PATIENCE_MS = 60_000


def _from_here(route: Route) -> None:
    """MLflow's pages ask other hosts for their fonts and news; they do without."""
    address = route.request.url
    route.continue_() if address.startswith(("http://127.0.0.1", "data:", "blob:")) else route.abort()


class _Guide:
    """Opens the pages that the guide names, and counts what is there."""

    def __init__(self, page: Page, uri: str, pictures: Path | None) -> None:
        self.page, self.uri, self.pictures = page, uri, pictures
        self.lacking: list[str] = []
        self.count = 0

    def open(self, address: str) -> None:
        # The pages' own router does not see a change of what stands behind the hash alone.
        self.page.goto("about:blank")
        self.page.goto(f"{self.uri}{address}", wait_until="domcontentloaded")

    def sees(self, what: str, locator: Any) -> None:
        self.count += 1
        try:
            expect(locator.first).to_be_visible(timeout=PATIENCE_MS)
        except (AssertionError, Error):
            self.lacking.append(what)

    def keep(self, name: str) -> None:
        if self.pictures is not None:
            self.page.wait_for_timeout(1500)
            self.page.screenshot(path=str(self.pictures / f"mlflow_{name}.png"))


def _walk(guide: _Guide, client: MlflowClient) -> None:
    page = guide.page
    (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == EXPERIMENT)
    tops = client.search_runs([experiment], f"tags.`{KIND_TAG}` = 'study'")
    named = {run.info.run_name: run for run in tops}
    guide.open(VIEW_ADDRESS.format(experiment=experiment))
    for name in named:
        guide.sees(f"study {name}", page.get_by_role("link", name=name, exact=True))
    close = page.get_by_role("button", name="Close")
    for metric in ("nfe3", "nfe3_gain", "nfe3_stock"):
        guide.sees(f"column {metric}", page.get_by_text(f"fid-digits/{metric}", exact=True))
    guide.sees("name of the view", page.get_by_text(VIEW_NAME))
    if close.count():
        close.first.click()
    guide.keep("studies")

    study = named["schedule"]
    guide.open(f"/#/experiments/{experiment}/runs/{study.info.run_id}?workflowType=machine_learning")
    page.get_by_text("Show more").click(timeout=PATIENCE_MS)
    guide.sees("table of the description", page.get_by_role("columnheader", name="best stock (95%)"))
    picture = page.locator("img[src*='get-artifact']").first
    guide.sees("picture of the description", picture)
    guide.count += 1
    if not picture.evaluate("image => image.complete && image.naturalWidth > 300"):
        guide.lacking.append("pixels of the picture")
    guide.keep("study")

    pair = [named[name].info.run_id for name in ("schedule", "schedule-evolved")]
    told = ",".join(f'"{run}"' for run in pair)
    guide.open(f'/#/compare-runs?runs=[{told}]&experiments=["{experiment}"]&workflowType=machine_learning')
    guide.sees("comparison", page.get_by_text("Comparing 2 Runs"))
    guide.sees("a figure compared", page.get_by_text("fid-digits/nfe3_gain"))
    guide.keep("compare")


def _logged(folders: list[Path], uri: str, made: Path) -> Iterator[Path]:
    for folder in folders:
        own = made / folder.name
        shutil.copytree(folder, own)
        log(Study.load(own), uri)
        yield own


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[STORED / name for name in STUDIES])
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--uri", default="", help="a server that runs already")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, sync_playwright() as started:
        server = Server(Path(made))
        try:
            if not a.uri:
                server.start()
            studies = list(_logged(a.folders, uri := a.uri or server.uri, Path(made)))
            browser = started.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1800, "height": 950})
            page.set_default_timeout(PATIENCE_MS)
            page.route("**/*", _from_here)
            guide = _Guide(page, uri, a.pictures)
            _walk(guide, MlflowClient(uri))
            browser.close()
        finally:
            server.kill()
    conditions = {"studies": len(studies), "lacking": guide.lacking}
    emit("mlflow_pages", "the guide", "things", guide.count - len(guide.lacking), guide.count, conditions)


if __name__ == "__main__":
    main()
