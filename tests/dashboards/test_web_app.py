"""The live pages, asked in this process: what they show, what they refuse, and that they tell of new records."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from fewstep.dashboards.web import server
from fewstep.dashboards.web.app import make_app
from fewstep.dashboards.web.candidates import compared
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.decisions import LEAST, importances
from fewstep.dashboards.web.live import changes
from fewstep.dashboards.web.places import Places
from fewstep.dashboards.web.trials import PAGE, Asked, trials
from fewstep.errors import ConfigurationError
from fewstep.search_spaces.point import parse_point, quantization_of
from fewstep.storage.lease import Lease
from fewstep.storage.records import EventRecord, StudyRecord
from fewstep.storage.store import Store

STORED = Path(__file__).parent.parent / "fixtures" / "studies"
SPACES = ("schedule", "joint", "quantization", "edit-nsgaii", "evaluations")


def client_of(*folders: Path) -> TestClient:
    return TestClient(make_app(list(folders)), base_url="http://127.0.0.1")


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.partition("<main")[2]))


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for name in SPACES:
        shutil.copytree(STORED / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_every_page_of_every_space_is_there_and_only_reads(studies: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in studies.rglob("*")}
    client = client_of(studies)
    listed = re.findall(r'href="(/studies/[^"]+)"', client.get("/").text)
    assert len(listed) == len(SPACES)
    seen, open_ = set[str](), [*listed]
    while open_:
        address = open_.pop()
        of_candidate = "/candidates/" in address
        if address in seen or (of_candidate and sum("/candidates/" in other for other in seen) > 5):
            continue
        seen.add(address)
        answer = client.get(address)
        assert answer.status_code == 200, (address, text_of(answer.text))
        assert "https://" not in answer.text.replace("https://plotly", "")
        open_ += re.findall(r'href="(/studies/[^"?]+)"', answer.text)
    kinds = {address.split("/")[3] for address in seen if address.count("/") > 2}
    assert kinds == {"trials", "schedules", "candidates", "decisions", "fronts"}
    for method in (client.post, client.put, client.delete):
        assert method(listed[0]).status_code == 405
    assert {path: path.stat().st_mtime_ns for path in studies.rglob("*")} == before


def test_filters_show_what_a_read_of_the_table_finds(studies: Path) -> None:
    store = Store(studies / "schedule")
    rows = store.evaluations.read(where={"study": "schedule"}).to_pandas()
    client = client_of(studies / "schedule")
    (slug,) = re.findall(r'href="(/studies/[^"]+)"', client.get("/").text)
    cases = {
        "": rows["nfe"] > 0,
        "nfe=3": rows["nfe"] == 3,
        "rung=frechet&status=failed": (rows["rung"] == "frechet") & (rows["status"] == "failed"),
        "origin=preset": rows["origin"].str.startswith("preset:"),
        "text=EXPLODES": rows["error"].str.contains("explodes"),
        "text=ddim&nfe=4": rows["origin"].str.contains("ddim") & (rows["nfe"] == 4),
        "text=%5B.*": rows["nfe"] < 0,
    }
    for query, expected in cases.items():
        told = text_of(client.get(f"{slug}/trials?{query}").text)
        assert f" {expected.sum()} of {len(rows)} evaluations" in told, query


def test_pages_of_a_table_hold_each_row_once_and_in_order(studies: Path) -> None:
    (entry,) = Places([studies / "schedule"]).find()[0]
    columns, found = Columns(), []
    for number in range(1, 10):
        page = trials(columns, entry, Asked(sort="value", down=True, page=number))
        if number > page.pages:
            break
        assert len(page.rows) <= PAGE
        found += page.rows
    assert len({row.key for row in found}) == page.total == len(found)
    values = [row.value for row in found if row.value is not None]
    assert values == sorted(values, reverse=True)
    assert all(row.value is None for row in found[len(values) :])


def test_the_front_is_that_of_the_report(studies: Path) -> None:
    from fewstep.dashboards.results import report_table
    from fewstep.dashboards.web.findings import fronts

    for name in ("schedule", "joint"):
        (entry,) = Places([studies / name]).find()[0]
        (front,) = fronts(Columns(), entry)
        assert front.judged
        assert front.table.equals(report_table(Store(studies / name), name))


def test_further_metrics_of_a_report_have_a_front_each(store: Store, tmp_path: Path) -> None:
    rows = [row for row in store.evaluations.records() if row.rung == "report"]
    measured = [
        replace(row, order=1000 + row.order, key=f"m{row.key}", rung="measured-cmmd", metric="cmmd", value=2.0)
        for row in rows
    ]
    store.evaluations.append(measured)
    client = client_of(tmp_path)
    (slug,) = re.findall(r'href="(/studies/[^"]+)"', client.get("/").text)
    page = text_of(client.get(slug).text)
    assert "Fréchet distance in the feature space fid-digits on 10,000 images" in page
    assert "cmmd in the feature space fid-digits on 10,000 images" in page


def test_studies_side_by_side_share_a_picture_where_their_values_compare(studies: Path) -> None:
    from fewstep.dashboards.web.findings import side_by_side

    shutil.copytree(studies / "schedule", studies / "again")
    shutil.copytree(STORED / "schedule-evolved", studies / "schedule-evolved")
    client, places = client_of(studies), Places([studies])
    slugs = {entry.folder.name: entry.slug for entry in places.find()[0]}
    chosen = [entry for entry in places.find()[0] if entry.folder.name in ("schedule", "again", "edit-nsgaii")]
    tables = side_by_side(Columns(), chosen)
    assert sorted(len(set(table["method"])) for table in tables) == [1, 2]
    page = client.get(f"/side-by-side?s={slugs['schedule']}&s={slugs['again']}&s={slugs['evaluations']}").text
    assert "again · schedule" in text_of(page)
    assert "evaluations has no report yet" in text_of(page)
    assert client.get(f"/side-by-side?s={slugs['schedule']}").status_code == 400


def test_whatever_is_stored_is_shown_or_refused_in_a_line(tmp_path: Path, make_evaluation: Callable[..., Any]) -> None:
    """Odd rows, settings, locks and files: every page answers, and no text of theirs becomes HTML."""
    evil, now = "<script>alert(1)</script>", make_evaluation(0).finished_at
    rows = [make_evaluation(i, study="s") for i in range(6)]
    cases: dict[str, tuple[str | None, list[Any]]] = {
        "only-settings": ('{"space": "schedule", "nfes": [3], "budget": 9}', []),
        "no-settings": ("{{{", rows),
        "odd-settings": ('{"space": 7, "nfes": "3-4", "budget": "much"}', rows),
        "failed": ('{"budget": 9}', [replace(r, value=None, status="failed", error=evil, origin=evil) for r in rows]),
        "no-numbers": ('{"budget": 9}', [replace(r, value=[math.nan, math.inf, -1.0][r.order % 3]) for r in rows]),
        "negative": ('{"budget": 9}', [replace(r, rung="report", origin="found:s3", value=-1.0) for r in rows]),
        "networks": ('{"space": "joint"}', [replace(r, rung="finals", candidate_json="no JSON") for r in rows]),
        "edits": ('{"subject": {}}', [replace(r, rung="screen", candidate_json='{"kind":"edit"}') for r in rows]),
        "hash": ('{"budget": 9}', [make_evaluation(0, study="s", candidate="a/b c?d#é")]),
        "no-study": (None, [make_evaluation(0, study="../../etc")]),
    }
    for name, (settings, records) in cases.items():
        store = Store(tmp_path / name)
        if settings is not None:
            store.studies.append([StudyRecord("s", now, settings, evil, "h")])
        store.evaluations.append(records)
        store.events.append([EventRecord("s", 0, "refit", evil, now, "no JSON"), EventRecord("s", 1, evil, evil, now)])
    (tmp_path / "edits" / "driver.lock").write_text('{"pid": "x", "host": 3}')
    (tmp_path / "hash" / "images.png").symlink_to("/etc/hostname")
    (tmp_path / "hash" / "pivot-x.csv").write_text("a,b\n1,2,3\n")
    client = client_of(tmp_path)
    addresses = ["/", *re.findall(r'href="(/studies/[^"]+)"', client.get("/").text)]
    assert len(addresses) == 1 + len(cases)
    for address in addresses[1:]:
        addresses += [f"{address}/{tab}" for tab in ("trials?sort=value", "schedules", "fronts", "images", "grid")]
        addresses += re.findall(r'href="(/studies/[^"]+/candidates/[^"]+)"', client.get(f"{address}/trials").text)[:1]
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == (503 if "hash" in address and address.endswith("/grid") else 200), address
        assert evil not in answer.text
    (linked,) = [
        address for address in addresses if address.startswith("/studies/hash") and address.endswith("/images")
    ]
    assert client.get(f"{linked}/images.png").status_code == 404


def test_the_decision_that_made_the_difference_matters_most(
    tmp_path: Path, make_evaluation: Callable[..., Any]
) -> None:
    """Of what was drawn; neither what is the same for all, nor what has no part in the value."""
    drawn = random.Random(0)
    rows = []
    for i in range(60):
        gap, order = drawn.random(), drawn.choice([1, 2, 3])
        parameters = {"gap.0": gap, "gap.1": drawn.random(), "order.0": order, "end": "zero", "nfe": 4, "list": [1]}
        rows.append(make_evaluation(i, study="s", nfe=4, value=3 * gap + 0.3 * order, parameters=parameters))
    rows += [make_evaluation(60 + i, study="s", nfe=5, parameters={"gap.0": 0.1 * i}) for i in range(LEAST - 1)]
    store = Store(tmp_path / "s")
    store.studies.append([StudyRecord("s", rows[0].finished_at, '{"budget": 9}', "m", "h")])
    store.evaluations.append(rows)
    (entry,) = Places([tmp_path]).find()[0]
    (told,) = importances(Columns(), entry)
    assert (told.nfe, told.rung, told.candidates) == (4, "frechet", 60)
    assert list(told.shares) == ["gap", "order"]
    assert told.shares["gap"] > 0.8
    assert sum(told.shares.values()) == pytest.approx(1)
    page = client_of(tmp_path).get(f"/studies/{entry.slug}/decisions").text
    assert "60 candidates at the rung frechet" in text_of(page)


def test_a_quantised_candidate_tells_which_layers_hold_how_many_bits(studies: Path) -> None:
    """As the calibration that the study keeps says; of other configs' and damaged files nothing."""
    folder = studies / "quantization"
    rows = Store(folder).evaluations.records()
    configs = {r.candidate: config for r in rows if (config := quantization_of(parse_point(r.candidate_json)))}
    (first, config), (second, _) = list(configs.items())[:2]
    layers = [("body", 4, 8, 600, 70), ("body", 4, 8, 200, 20), ("edge", 8, 8, 100, 10), ("rest", 0, 0, 100, 0)]
    names = ("role", "weight_bits", "activation_bits", "parameters", "multiply_adds")
    told = {"config": config.model_dump(), "coverage": [dict(zip(names, layer, strict=True)) for layer in layers]}
    errors = [{"time": 9.0, "cosine": 1.0, "relative_error": 0.125, "least": 0.0625, "most": 0.25}]
    for name, text in (("a", "{"), ("b", '{"config": {}}'), ("c", json.dumps(told))):
        (folder / "quantized" / name).mkdir(parents=True)
        (folder / "quantized" / name / "quantization.json").write_text(text)
    client = client_of(folder)
    (slug,) = re.findall(r'href="(/studies/[^"]+)"', client.get("/").text)
    page = text_of(client.get(f"{slug}/candidates/{first}").text)
    assert "body 2 4 8 80.0 % 90.0 % edge 1 8 8 10.0 % 10.0 % rest 1 32 32 10.0 % 0.0 %" in page
    assert "an earlier version calibrated this network" in page
    for temporal, words in ((errors, "9 0.125 0.0625 0.25"), ([], "no layer that depends on time alone")):
        (folder / "quantized" / "c" / "quantization.json").write_text(json.dumps({**told, "temporal": temporal}))
        assert words in text_of(client.get(f"{slug}/candidates/{first}").text)
    other = text_of(client.get(f"{slug}/candidates/{second}").text)
    assert "What is quantised" not in other
    assert "Temporal features" not in other


def test_pictures_of_strengths_are_those_that_are_there(studies: Path) -> None:
    """Whatever the file beside them names: paths elsewhere and pictures that are gone are none."""
    folder = studies / "edit-nsgaii" / "strengths"
    folder.mkdir()
    client = client_of(studies / "edit-nsgaii")
    (slug,) = re.findall(r'href="(/studies/[^"]+)"', client.get("/").text)
    for name in ("strength-00.png", "strength-01.png", "strength-02.png"):
        (folder / name).write_bytes(b"png")
    (folder / "strength-03.png").symlink_to("/etc/passwd")
    listed = {"strength-02.png": 2.0, "strength-00.png": -1.0, "strength-03.png": 3.0, "strength-09.png": 9.0}
    listed |= {"../expected.json": 4.0, "strength-01.png": math.inf}
    told = {"own": 1.8, "strengths": list(listed.values()), "files": list(listed)}
    (folder / "strengths.json").write_text(json.dumps(told))
    page = client.get(f"{slug}/images").text
    assert re.findall(r'src="[^"]*/(strength[^"]+)"', page) == ["strength-00.png", "strength-02.png"]
    assert re.findall(r'id="strength" [^>]*max="(.)" value="(.)"', page) == [("1", "1")]
    assert client.get(f"{slug}/images/strength-02.png").status_code == 200
    assert client.get(f"{slug}/images/strength-03.png").status_code == 404
    for text in (
        "{",
        "[]",
        '{"own": 1, "strengths": [1.0], "files": []}',
        '{"own": "a", "strengths": [], "files": []}',
    ):
        (folder / "strengths.json").write_text(text)
        assert "by strength</h2>" not in client.get(f"{slug}/images").text


def test_a_comparison_marks_what_differs_and_nothing_else(studies: Path) -> None:
    from fewstep.dashboards.web.candidates import shown

    (entry,) = Places([studies / "schedule"]).find()[0]
    first, second = shown(Columns(), entry)
    assert not any(line.differs for line in compared(first, first))
    lines = {line.name: line for line in compared(first, second)}
    assert lines["NFE"].differs
    assert lines["NFE"].first == str(first.nfe)
    last = max(first.nfe, second.nfe)
    assert f"step {last}: time" in lines


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/studies/nothing", 404, "no such study"),
        ("/studies/..%2f..%2fetc%2fpasswd", 404, "no such"),
        ("/studies/{slug}/images/..%2f..%2fexpected.json", 404, "no such"),
        ("/studies/{slug}/images/expected.json", 404, "no such picture"),
        ("/static/..%2fapp.py", 404, "no such page"),
        ("/studies/{slug}/candidates/cafe", 400, "no candidate 'cafe'"),
        ("/studies/{slug}/trials?nfe=three", 400, "nfe='three'"),
        ("/studies/{slug}/trials?sort=study", 400, "cannot sort by 'study'"),
        ("/studies/{slug}/trials?page=-1", 400, "page='-1'"),
        ("/compare?a=1", 400, "STUDY:CANDIDATE"),
        ("/openapi.json", 404, "no such page"),
    ],
)
def test_a_wrong_address_gets_a_line(studies: Path, address: str, status: int, words: str) -> None:
    client = client_of(studies / "schedule")
    (slug,) = re.findall(r'href="/studies/([^"]+)"', client.get("/").text)
    answer = client.get(address.format(slug=slug))
    assert answer.status_code == status
    assert words in text_of(answer.text).replace("&#39;", "'")
    assert "Traceback" not in answer.text


def test_only_pages_of_this_machine_are_answered(studies: Path) -> None:
    app = make_app([studies], server.allowed_hosts("127.0.0.1"))
    for host, status in (("127.0.0.1:8740", 200), ("localhost", 200), ("[::1]:8740", 200), ("evil.example", 400)):
        assert TestClient(app).get("/", headers={"host": host}).status_code == status, host
    elsewhere = TestClient(make_app([studies], server.allowed_hosts("0.0.0.0")))
    assert elsewhere.get("/", headers={"host": "laboratory.example"}).status_code == 200
    policy = elsewhere.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.7", False)],
)
def test_what_is_loopback(host: str, inside: bool) -> None:
    assert server.is_loopback(host) is inside


def test_damaged_files_and_empty_folders_are_named(studies: Path, tmp_path: Path) -> None:
    (part,) = (studies / "schedule" / "tables" / "moments").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    (row,) = (studies / "joint" / "tables" / "studies").glob("*.parquet")
    row.write_bytes(b"PAR1 torn")
    (tmp_path / "empty").mkdir()
    client = client_of(studies, tmp_path / "empty")
    page = client.get("/").text
    (slug,) = re.findall(r'href="(/studies/schedule-[^"]+)"', page)
    assert "1 damaged file left out" in text_of(client.get(slug).text)
    (joint,) = re.findall(r'href="(/studies/joint-[^"]+)"', page)
    assert "damaged file" in text_of(client.get(joint).text)
    assert "no study in these folders yet" in text_of(client_of(tmp_path / "empty").get("/").text)
    with pytest.raises(ConfigurationError, match="is not there"):
        make_app([tmp_path / "nowhere"])
    with pytest.raises(ConfigurationError, match="is no folder"):
        make_app([part])


def test_a_running_search_is_told_by_its_lease(studies: Path) -> None:
    (entry,) = Places([studies / "schedule"]).find()[0]
    assert not entry.running
    with Lease(studies / "schedule"):
        assert entry.running
        assert "● running" in text_of(client_of(studies / "schedule").get("/").text)
    assert not entry.running


def test_a_new_record_is_told_and_shown(studies: Path, make_evaluation: Callable[..., Any]) -> None:
    store = Store(studies / "schedule")
    client = client_of(studies / "schedule")
    (slug,) = re.findall(r'href="/studies/([^"]+)"', client.get("/").text)
    (shown,) = re.findall(r'data-stamp="(\w+)"', client.get(f"/studies/{slug}").text)
    (last, *_) = sorted(store.evaluations.records(), key=lambda row: -row.order)

    async def told() -> list[str]:
        async def gone() -> bool:
            return False

        stream = changes(Places([studies]), gone, study=slug, since=shown, pause=0.02)
        found = [await anext(stream)]
        row = replace(last, order=last.order + 1, key="new", finished_at=last.finished_at + timedelta(days=1))
        store.evaluations.append([row])
        found.append(await asyncio.wait_for(anext(stream), 60))
        await stream.aclose()
        # Whoever comes back with what it saw before is told at once.
        again = changes(Places([studies]), gone, study=slug, since=shown, pause=60)
        found += [await anext(again), await anext(again)]
        await again.aclose()
        return found

    opened, changed, _, at_once = asyncio.run(told())
    assert at_once == changed
    assert "event: open" in opened
    assert "event: changed" in changed
    assert slug in changed
    assert "209 of 209 evaluations" in text_of(client.get(f"/studies/{slug}/trials").text)
