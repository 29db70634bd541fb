"""MLflow shows what the tables hold, once, however often it is told."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from fewstep.errors import StorageError, TrackingError
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.ode import OdeSettings
from fewstep.search_spaces.point import EditPoint, QuantizationPoint, as_point, joint, parse_point
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.presets import preset
from fewstep.storage import tracking, tracking_runs
from fewstep.storage.lease import Lease
from fewstep.storage.records import EventRecord, StudyRecord
from fewstep.storage.store import Store
from fewstep.storage.tracking import OWN_RUN, default_tracking_uri, sync, view_address
from fewstep.storage.tracking_client import complete
from fewstep.storage.tracking_plan import ID_TAG, best_so_far, flatten, plan_study
from fewstep.storage.tracking_view import EXPERIMENT_KIND, VIEW_TAG


class Killed(BaseException):
    """Stands for the end of the process."""


SCHEDULE = preset("ddim", (-5.0, -2.0, 1.0, 4.0))
EDIT = EditConfig(step=-1.0)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for all tests: making one takes seconds. Each test has a study of its own."""
    return default_tracking_uri(tmp_path_factory.mktemp("tracking dir"))


@pytest.fixture(scope="module")
def client(uri):
    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def study(request):
    return f"the study's {request.node.name}"


@pytest.fixture
def store(tmp_path, study, evaluation):
    """Six evaluations at NFE 3, 4 and 5, three on the front, one refit, one report row."""
    store = Store(tmp_path / "study")
    at = evaluation(0).finished_at
    settings = {"nfe": [3, 5], "sampler": {"name": "s3", "seed": 0}, "note": "n" * 7000, "empty": ""}
    store.studies.append([StudyRecord(study, at, json.dumps(settings), "digits", "h", {"torch": "2.14"})])
    values = [9.0, 8.0, 7.0, 10.0, 6.0, 7.5]
    points = {0: as_point(SCHEDULE).to_json()}
    store.evaluations.append(
        [
            evaluation(i, study=study, value=value, candidate_json=points.get(i, "what no version can read"))
            for i, value in enumerate(values)
        ]
    )
    store.evaluations.append(
        [
            evaluation(
                6,
                study=study,
                candidate=f"{0:08x}cafe",
                rung="report",
                value=9.5,
                low=9.0,
                high=10.0,
                images=5000,
            )
        ]
    )
    store.events.append(
        [
            EventRecord(study, 1, "refit", "", at, json.dumps({"tau": 0.5, "evaluations": 3, "seconds": 1.5})),
            EventRecord(study, 2, "refit", "", at, json.dumps({"tau": float("nan"), "evaluations": 6})),
            EventRecord(study, 3, "lost", "", at),
        ]
    )
    return store


def runs_of(client, study, view=ViewType.ACTIVE_ONLY):
    experiment = client.get_experiment_by_name("fewstep")
    found = client.search_runs([experiment.experiment_id], f'tags.`fewstep.study` = "{study}"', view)
    return {run.data.tags.get("fewstep.candidate"): run for run in found}, len(found)


def runs_with_id(client, store):
    """The runs with the study's id, deleted ones too."""
    experiment = client.get_experiment_by_name("fewstep")
    query = f"tags.`{ID_TAG}` = '{store.studies.records()[0].id}'"
    return client.search_runs([experiment.experiment_id], query, ViewType.ALL)


def evaluation_of(store, **changes):
    """A further evaluation of a candidate of its own at NFE 4."""
    last = store.evaluations.records()[-1]
    fields = {"order": last.order + 1, "key": "further", "candidate": "further", "nfe": 4, "rung": "frechet"}
    return replace(last, **(fields | changes))


def contents(client, study):
    """All that a study shows, in comparable form."""
    runs, count = runs_of(client, study)
    assert count == len(runs)
    shown = {}
    for candidate, run in runs.items():
        history = {
            name: [
                (point.step, point.timestamp, point.value) for point in client.get_metric_history(run.info.run_id, name)
            ]
            for name in run.data.metrics
        }
        artifacts = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        shown[candidate] = (run.to_dictionary(), history, artifacts)
    return shown


def test_a_study_is_one_run_with_a_nested_run_for_each_member_of_its_front(store, study, uri, client, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>front</p>")
    member = f"{0:08x}cafe"
    parent = sync(store, study, uri, {"report/front.html": page}, {member: {"page.html": page}})
    runs, count = runs_of(client, study)
    assert count == 4
    assert set(runs) == {None, member, f"{4:08x}cafe", f"{2:08x}cafe"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}

    top = runs[None]
    assert top.info.run_id == parent
    assert top.info.run_name == study
    assert top.data.params["sampler.name"] == "s3"
    assert top.data.params["nfe"] == "[3, 5]"
    assert len(top.data.params["note"]) == 6000
    assert top.data.metrics["surrogate_tau"] == 0.5
    assert top.data.metrics["surrogate_seconds"] == 1.5
    curve = client.get_metric_history(parent, "fid-digits/best_frechet_nfe4")
    assert [(point.step, point.value) for point in curve] == [(7000, 8.0), (19000, 6.0)]
    assert [file.path for file in client.list_artifacts(parent, "report")] == ["report/front.html"]

    nested = runs[member]
    assert nested.data.tags["mlflow.parentRunId"] == parent
    assert nested.data.params["nfe"] == "3"
    assert nested.data.params["origin"] == "random"
    assert nested.data.metrics == {
        "fid-digits/frechet_value": 9.0,
        "fid-digits/report_value": 9.5,
        "fid-digits/report_low": 9.0,
        "fid-digits/report_high": 10.0,
    }
    files = {file.path for file in client.list_artifacts(nested.info.run_id)}
    assert files == {"schedule.json", "page.html"}


def test_every_kind_of_point_is_in_files_that_can_be_used(tmp_path, study, evaluation):
    """A part that is a format of its own is a file of its own; whatever else a point is, it is kept as it is."""
    config = QuantizationConfig(weight_bits=4)
    points = {
        3: joint(as_point(SCHEDULE), QuantizationPoint(config=config)),
        4: EditPoint(edit=EDIT),
        5: as_point(OdeSettings()),
    }
    store = Store(tmp_path / "other")
    store.studies.append([StudyRecord(study, evaluation(0).finished_at, "{}", "digits", "h", {})])
    store.evaluations.append(
        [evaluation(nfe, study=study, nfe=nfe, candidate_json=point.to_json()) for nfe, point in points.items()]
    )
    texts = {plan.params["nfe"]: plan.texts for plan in plan_study(store, study).members.values()}
    assert {nfe: set(files) for nfe, files in texts.items()} == {
        "3": {"schedule.json", "quantization.json"},
        "4": {"edit.json"},
        "5": {"point.json"},
    }
    assert SolverSchedule.from_json(texts["3"]["schedule.json"]).hash == SCHEDULE.hash
    assert QuantizationConfig.from_json(texts["3"]["quantization.json"]) == config
    assert EditConfig.from_json(texts["4"]["edit.json"]) == EDIT
    assert parse_point(texts["5"]["point.json"]) == points[5]


def test_telling_it_again_changes_nothing(store, study, uri, client):
    parent = sync(store, study, uri)
    before = contents(client, study)
    assert sync(store, study, uri) == parent
    assert contents(client, study) == before


def test_a_better_candidate_takes_the_place_of_another_and_back(store, study, uri, client, evaluation):
    sync(store, study, uri)
    pushed = f"{4:08x}cafe"
    store.evaluations.append([evaluation(7, study=study, nfe=4, value=0.5)])
    sync(store, study, uri)
    runs, count = runs_of(client, study)
    assert count == 4
    assert pushed not in runs
    assert f"{7:08x}cafe" in runs
    # As if the tables had been restored from a copy made before.
    older = Store(store.root + "-copy")
    older.studies.append(store.studies.records())
    older.evaluations.append(store.evaluations.records()[:-1])
    sync(older, study, uri)
    assert set(runs_of(client, study)[0]) == {None, f"{0:08x}cafe", f"{2:08x}cafe", pushed}
    assert runs_of(client, study, ViewType.ALL)[1] == 5


def test_runs_that_a_killed_client_left_are_completed_and_doubles_removed(store, study, uri, client):
    sync(store, study, uri)
    complete = contents(client, study)
    runs, _ = runs_of(client, study)
    for run in runs.values():
        client.update_run(run.info.run_id, status="RUNNING")
    experiment = runs[None].info.experiment_id
    client.create_run(experiment, tags=dict(runs[f"{0:08x}cafe"].data.tags))
    sync(store, study, uri)
    after, count = runs_of(client, study)
    assert count == 4
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert contents(client, study).keys() == complete.keys()


@pytest.mark.parametrize("calls", [1, 5])
def test_a_server_that_dies_midway_is_one_error_and_nothing_is_lost_or_doubled(
    store, study, uri, client, monkeypatch, calls
):
    left, log = [calls], MlflowClient.log_batch

    def dying(self, *arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionResetError("the server went away")
        return log(self, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", dying)
        with pytest.raises(TrackingError, match="the server went away; nothing is lost"):
            sync(store, study, uri)
    sync(store, study, uri)
    once = contents(client, study)
    assert {run["info"]["status"] for run, *_ in once.values()} == {"FINISHED"}
    sync(store, study, uri)
    assert contents(client, study) == once
    assert len(once) == 4


def test_runs_are_found_by_model_space_calls_and_bits(store, study, uri, client):
    sync(store, study, uri)
    experiment = client.get_experiment_by_name("fewstep").experiment_id
    member = store.evaluations.records()[0]
    mine = f"tags.`{ID_TAG}` = '{store.studies.records()[0].id}'"
    query = f"{mine} AND tags.model = '{member.model}' AND tags.nfe = '{member.nfe}'"
    (found,) = client.search_runs([experiment], query + " AND tags.space = 'schedule' AND tags.bits = 'full'")
    assert found.data.tags["fewstep.candidate"] == member.candidate
    (top,) = client.search_runs([experiment], f"{mine} AND tags.`fewstep.kind` = 'study'")
    assert top.data.tags["nfe"] == ",".join(str(n) for n in sorted({r.nfe for r in store.evaluations.records()}))


def test_the_experiment_opens_as_training_with_a_view_of_all_studies(store, study, uri, client, evaluation):
    """What others chose stays: the kind, the columns of their studies."""
    sync(
        store,
        study,
        uri,
        figures={"fid-digits/nfe10_gain": 0.5, "fid-digits/nfe4": 1.0},
        columns=["fid-digits/nfe10_gain"],
    )
    first = client.get_experiment_by_name("fewstep")
    assert first.tags[EXPERIMENT_KIND] == "custom_model_development"
    assert view_address(uri).startswith(f"/#/experiments/{first.experiment_id}/runs?")
    sync(store, study, uri, columns=["fid-digits/nfe4", "fid-digits/nfe4"])
    client.set_experiment_tag(first.experiment_id, EXPERIMENT_KIND, "genai_development")
    sync(store, study, uri, columns=["fid-digits/nfe4"])
    tags = client.get_experiment_by_name("fewstep").tags
    assert tags[EXPERIMENT_KIND] == "genai_development"
    view = json.loads(tags[VIEW_TAG])
    state = json.loads(view["state"])
    columns = [name for name in state["selectedColumns"] if "fid-digits/" in name]
    assert columns == ["metrics.`fid-digits/nfe4`", "metrics.`fid-digits/nfe10_gain`"]
    assert state["searchFilter"] == "tags.`fewstep.kind` = 'study'"
    client.delete_experiment_tag(first.experiment_id, VIEW_TAG)
    assert view_address(uri) == view_address("http://127.0.0.1:9") == "/#/experiments?workflowType=machine_learning"
    sync(store, study, uri)
    assert view_address(uri).endswith("viewStateShareKey=fewstep-studies")
    client.set_experiment_tag(first.experiment_id, VIEW_TAG, "no view")
    sync(store, study, uri, columns=["fid-digits/nfe4"])
    assert "nfe4" in client.get_experiment_by_name("fewstep").tags[VIEW_TAG]


def test_a_description_stands_on_the_study_and_names_its_run(store, study, uri, client):
    parent = sync(store, study, uri, description=f"![x](get-artifact?path=x.png&run_uuid={OWN_RUN}) " + "y" * 9000)
    note = client.get_run(parent).data.tags["mlflow.note.content"]
    assert note.startswith(f"![x](get-artifact?path=x.png&run_uuid={parent})")
    assert len(note) <= 8000


def test_what_was_found_and_the_best_stock_sampler_have_runs_that_say_what_they_are(
    store, study, uri, client, evaluation
):
    """A run of an older name is called by the new one; one that somebody named keeps it."""
    told = {"rung": "report", "study": study, "nfe": 3}
    rows = [("preset:ddim/karras", 12.0), ("own:DDIM", 11.0), ("found:random", 9.7)]
    store.evaluations.append(
        [evaluation(20 + i, origin=origin, value=value, **told) for i, (origin, value) in enumerate(rows)]
    )
    parent = sync(store, study, uri, front_rung="report")
    runs, _ = runs_of(client, study)
    names = {run.info.run_name: run.data.tags["fewstep.kind"] for run in runs.values() if run.info.run_id != parent}
    lowest = f"{study} / NFE 3 / random"  # of this report, though no search called it found
    assert names == {lowest: "front", f"{study} / NFE 3": "found", f"{study} / NFE 3 / own:DDIM": "stock"}
    by_name = {run.info.run_name: run.info.run_id for run in runs.values()}
    client.update_run(by_name[lowest], name="nfe 3 00000000")
    client.update_run(by_name[f"{study} / NFE 3"], name="mine")
    sync(store, study, uri, front_rung="report")
    assert {run.info.run_name for run in runs_of(client, study)[0].values()} == {
        study,
        lowest,
        "mine",
        f"{study} / NFE 3 / own:DDIM",
    }


def test_settings_that_changed_keep_their_first_value_and_show_in_the_artifact(store, study, uri, client):
    parent = sync(store, study, uri)
    at = store.studies.records()[0].created_at
    store.studies.append([StudyRecord(study, at, '{"nfe": [3, 9], "new": 1}', "digits", "h")])
    assert sync(store, study, uri) == parent
    params = client.get_run(parent).data.params
    assert (params["nfe"], params["new"]) == ("[3, 5]", "1")


def test_more_points_and_parameters_than_a_batch_takes(store, study, uri, client):
    at = store.studies.records()[0].created_at
    settings = {"space": {f"p{i}": i for i in range(230)}}
    store.studies.append([StudyRecord(study, at, json.dumps(settings), "digits", "h")])
    store.events.append(
        [
            EventRecord(study, 10 + i, "refit", "", at, json.dumps({"tau": i / 1e4, "evaluations": i}))
            for i in range(10, 1210)
        ]
    )
    parent = sync(store, study, uri)
    assert len(client.get_run(parent).data.params) > 230
    assert len(client.get_metric_history(parent, "surrogate_tau")) == 1201


def test_nothing_of_this_process_changes_and_nothing_is_printed(store, study, uri, capfd):
    before = dict(os.environ)
    level = logging.getLogger("mlflow").level
    sync(store, study, uri)
    assert dict(os.environ) == before
    assert logging.getLogger("mlflow").level == level
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_nor_when_the_database_is_made_by_a_process_that_had_no_mlflow_yet(store, study, tmp_path):
    code = (
        "import sys; from fewstep.storage.store import Store; from fewstep.storage.tracking import sync\n"
        "sync(Store(sys.argv[1]), sys.argv[2], sys.argv[3])"
    )
    arguments = [store.root, study, default_tracking_uri(tmp_path / "new")]
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, timeout=60, check=True)
    assert done.stdout + done.stderr == b""


def test_what_cannot_be_shown_is_refused_before_anything_is_sent(store, study, tmp_path):
    uri = default_tracking_uri(tmp_path / "never made")
    with pytest.raises(StorageError, match="there is no study 'other'"):
        sync(store, "other", uri)
    with pytest.raises(TrackingError, match=r"there is no file .*grid\.png"):
        sync(store, study, uri, {"grid.png": tmp_path / "grid.png"})
    assert not (tmp_path / "never made").exists()


def test_a_server_that_is_not_there_is_one_short_error_within_seconds(store, study):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    before = dict(os.environ)
    begin = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        sync(store, study, address)
    assert time.monotonic() - begin < 5
    assert address in str(caught.value)
    assert "sync again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert dict(os.environ) == before


def test_a_server_that_never_answers_is_given_up_within_seconds(store, study):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        with pytest.raises(TrackingError):
            sync(store, study, f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=1.0)
        assert time.monotonic() - begin < 8


def test_a_database_in_use_is_reported_as_busy(store, study, tmp_path):
    with Lease(tmp_path, "mlflow.lock"), pytest.raises(TrackingError, match=r"is busy: .* in use by process"):
        sync(store, study, default_tracking_uri(tmp_path), timeout=0.2)


def test_a_database_that_is_locked_is_tried_again(store, study, uri, monkeypatch, caplog):
    left = [2]

    def locked(*_):
        if left[0]:
            left[0] -= 1
            raise sqlite3.OperationalError("database is locked")

    parent = sync(store, study, uri)
    monkeypatch.setattr(tracking, "follow", locked)
    assert sync(store, study, uri) == parent
    assert left == [0]
    assert [record.getMessage() for record in caplog.records] == [
        f"{uri} is locked by another program, trying again"
    ] * 2
    left[0] = -1
    monkeypatch.setattr(tracking, "PATIENCE", 0.0)
    with pytest.raises(TrackingError, match=r"database is locked.*sync again"):
        sync(store, study, uri)


def test_a_file_that_is_no_database_is_an_error(store, study, tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be taken for a damaged one")
    with pytest.raises(TrackingError, match=r"tracking at sqlite.*failed"):
        sync(store, study, default_tracking_uri(tmp_path))


def namesake(folder, store, **changes):
    """Another study of the same name: its records, but for some fields, made a minute later."""
    other, later = Store(folder), timedelta(minutes=1)
    (row,) = store.studies.records()
    other.studies.append([replace(row, created_at=row.created_at + later, id=changes.pop("id", ""))])
    rows = store.evaluations.records()
    other.evaluations.append([replace(row, finished_at=row.finished_at + later, **changes) for row in rows])
    return other


def forget_ids(client, study):
    """As the runs were when a study was known by its name alone."""
    runs, _ = runs_of(client, study, ViewType.ALL)
    for run in runs.values():
        deleted = run.info.lifecycle_stage == "deleted"
        if deleted:
            client.restore_run(run.info.run_id)
        client.delete_tag(run.info.run_id, ID_TAG)
        if deleted:
            client.delete_run(run.info.run_id)
    return {run.info.run_id for run in runs.values()}


def test_studies_of_one_name_stay_apart_and_a_copied_folder_is_the_same_study(store, study, uri, client, tmp_path):
    first = sync(store, study, uri)
    other = namesake(tmp_path / "other", store, value=1.0, candidate="another")
    second = sync(other, study, uri)
    assert second != first
    assert sync(store, study, uri) == first
    shutil.copytree(tmp_path / "study", tmp_path / "copy")
    assert sync(Store(tmp_path / "copy"), study, uri) == first
    assert sync(other, study, uri) == second
    found = client.search_runs([client.get_run(first).info.experiment_id], f'tags.`fewstep.study` = "{study}"')
    parents = {run.data.tags.get("mlflow.parentRunId", run.info.run_id) for run in found}
    assert parents == {first, second}
    assert len(found) == 6  # a study and three members, a study and one
    for parent, own in ((first, store), (second, other)):
        values = {row.value for row in own.evaluations.records()}
        history = client.get_metric_history(parent, "fid-digits/best_frechet_nfe4")
        assert {point.value for point in history} <= values
        assert client.get_run(parent).info.start_time == int(own.studies.records()[0].created_at.timestamp() * 1000)


def test_runs_that_were_logged_under_the_name_alone_are_taken_over(store, study, uri, client, tmp_path):
    parent = sync(store, study, uri)
    store.evaluations.append([evaluation_of(store, value=0.5)])
    sync(store, study, uri)  # one member is off the front, its run deleted
    before = forget_ids(client, study)
    assert len(before) == 5
    other = namesake(tmp_path / "other", store, value=1.0)
    apart = sync(other, study, uri)  # comes first, and takes nothing that is not its own
    assert apart not in before
    for _ in range(2):
        assert sync(store, study, uri) == parent
        assert {run.info.run_id for run in runs_with_id(client, store)} == before


def test_runs_that_hold_two_studies_are_left_as_they_are(store, study, uri, client, tmp_path, caplog):
    """Studies of one name were merged: the parameters of one, the values of both."""
    other = namesake(tmp_path / "other", store, value=1.0)
    merged = sync(store, study, uri)
    for row in other.evaluations.records():
        client.log_metric(
            merged, "fid-digits/best_frechet_nfe4", row.value, int(row.finished_at.timestamp() * 1000), row.order
        )
    before = forget_ids(client, study)
    new = {sync(store, study, uri), sync(other, study, uri)}
    assert len(new) == 2
    assert not new & before
    assert all(ID_TAG not in client.get_run(run).data.tags for run in before)
    assert [record.getMessage() for record in caplog.records] == [
        f"the runs of study {study!r} hold values of another study of that name too: it gets new ones"
    ] * 2
    assert {sync(store, study, uri), sync(other, study, uri)} == new


def test_a_takeover_that_was_cut_off_is_finished(store, study, uri, client, monkeypatch):
    parent = sync(store, study, uri)
    before = forget_ids(client, study)
    claim, left = tracking_runs._claim, [2]

    def stop(*arguments):
        if not left[0]:
            raise Killed
        left[0] -= 1
        claim(*arguments)

    monkeypatch.setattr(tracking_runs, "_claim", stop)
    with pytest.raises(Killed):
        sync(store, study, uri)
    monkeypatch.setattr(tracking_runs, "_claim", claim)
    assert sync(store, study, uri) == parent
    assert {run.info.run_id for run in runs_with_id(client, store)} == before


NAMES = [
    "a-b",
    "a_b",
    "a%b",
    "A-b",
    "a'b",
    'a"b',
    """a'"b""",
    "a\\b",
    "a`b",
    "a\nb",
    "a\u00e9b \u2014 \U0001f600",
    "%",
    "a' OR '1'='1",
    "-- ;",
]


def test_a_study_of_any_name_is_found_again_and_no_other_in_its_place(tmp_path, uri, client, evaluation):
    store = Store(tmp_path / "study")
    for name in NAMES:
        store.studies.append([StudyRecord(name, evaluation(0).finished_at, "{}", "digits", "h")])
    first = {name: sync(store, name, uri) for name in NAMES}
    assert len(set(first.values())) == len(NAMES)
    assert {name: sync(store, name, uri) for name in NAMES} == first
    assert {name: client.get_run(run).data.tags["fewstep.study"] for name, run in first.items()} == dict(
        zip(NAMES, NAMES, strict=True)
    )


def test_artifacts_follow_a_study_that_is_moved(store, study, tmp_path):
    old, new, elsewhere = tmp_path / "old", tmp_path / "new place", tmp_path / "elsewhere"
    note = tmp_path / "note.txt"
    note.write_text("x")
    parent = sync(store, study, default_tracking_uri(old), {"before.txt": note})
    chosen = MlflowClient(tracking_uri=default_tracking_uri(old))
    other = chosen.create_experiment("somebody's", elsewhere.as_uri())
    for _ in range(2):
        shutil.move(old, new)
        uri = default_tracking_uri(new)
        assert sync(store, study, uri, {"after.txt": note}) == parent
        assert not old.exists()
        assert len(list(new.rglob("after.txt"))) == len(list(new.rglob("before.txt"))) == 1
        moved = MlflowClient(tracking_uri=uri)
        assert {"before.txt", "after.txt", "settings.json"} <= {f.path for f in moved.list_artifacts(parent)}
        assert moved.get_experiment(other).artifact_location == elsewhere.as_uri()
        old, new = new, old


def half_made(path):
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    engine.dispose()


@pytest.mark.parametrize("stopped", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_database_is_there_whole_or_not_at_all(store, study, tmp_path, monkeypatch, stopped):
    def stop(*_):
        raise stopped

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", stop)
    with pytest.raises(Killed if isinstance(stopped, Killed) else TrackingError):
        sync(store, study, default_tracking_uri(tmp_path / "new"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.lock"]


def test_what_is_half_made_is_told_from_what_is_foreign(tmp_path):
    made = {name: tmp_path / name for name in ("none", "empty", "half", "foreign")}
    made["empty"].touch()
    half_made(made["half"])
    made["foreign"].write_text("not a database, but long enough to be taken for a damaged one")
    assert {name: complete(path) for name, path in made.items()} == {
        "none": False,
        "empty": False,
        "half": False,
        "foreign": True,
    }


def test_a_database_whose_creation_was_cut_off_is_made_anew(store, study, tmp_path):
    """What an earlier version left in its place, and what a killed process left beside it."""
    root = tmp_path / "mlflow"
    root.mkdir()
    half_made(root / "mlflow.db")
    half_made(root / "mlflow.db.0123abcd.new")
    parent = sync(store, study, default_tracking_uri(root))
    assert MlflowClient(tracking_uri=default_tracking_uri(root)).get_run(parent).info.status == "FINISHED"
    assert complete(root / "mlflow.db")
    assert sorted(path.name for path in root.iterdir() if path.name.startswith("mlflow.db")) == ["mlflow.db"]


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:hunter2@127.0.0.1:{port}",
        "http://127.0.0.1:{port}/?token=hunter2",
        "nonsense://me:hunter2@x/y",
        "postgresql://me:hunter2@127.0.0.1:{port}/runs",
    ],
)
def test_a_password_in_the_address_is_in_no_message(store, study, uri):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = uri.format(port=probe.getsockname()[1])
    with pytest.raises(TrackingError) as caught:
        sync(store, study, address, timeout=1.0)
    assert "hunter2" not in str(caught.value)
    assert "***" in str(caught.value)


def test_the_plan_depends_on_the_tables_alone(store, study):
    assert plan_study(store, study) == plan_study(Store(store.root), study)
    store.evaluations.compact()
    assert plan_study(store, study) == plan_study(Store(store.root), study)


def test_a_study_without_its_settings_row_is_still_shown(store, study):
    bare = Store(store.root + "-bare")
    bare.evaluations.append(store.evaluations.records())
    plan = plan_study(bare, study)
    assert plan.parent.params == {}
    assert len(plan.members) == 3


def test_settings_become_parameters():
    settings = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": "text", "f(x)": True}
    assert flatten(settings) == {"a.b": "1", "a.c": "[1, 2]", "d": "null", "e": "text", "f_x_": "true"}


def test_the_curve_holds_improvements_over_the_calls_spent(evaluation):
    changes = [{"value": 3.0}, {"status": "failed", "value": None}, {"value": 4.0}, {"value": 1.0}]
    rows = [evaluation(i, nfe=3, denoiser_calls=10, **change).to_row() for i, change in enumerate(changes)]
    assert [(point.step, point.value) for point in best_so_far(rows, "frechet")] == [(10, 3.0), (40, 1.0)]


def test_reading_and_writing_tables_does_not_import_mlflow_or_dask():
    code = (
        "import sys, fewstep.storage.tracking, fewstep.storage.queries, fewstep.storage.lease\n"
        "sys.exit(bool({'mlflow', 'dask'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=60, check=False).returncode == 0


KILLER = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from fewstep.storage.store import Store
from fewstep.storage.tracking import OWN_RUN, default_tracking_uri, sync, view_address
import mlflow.store.tracking.sqlalchemy_store

root, study = sys.argv[1:3]
for number, moment in enumerate(sys.argv[3:]):
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    left = int(moment) if moment.isdigit() else -1

    def count(*_):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    if moment == "rename":
        os.replace = die
    sync(Store(root), study, default_tracking_uri(root + "-tracked"))
    os._exit(0)
"""


@pytest.mark.slow
def test_a_database_is_made_anew_whenever_its_maker_was_killed(store, study, tmp_path):
    moments = ["1", "60", "rename"]
    command = [sys.executable, "-P", "-c", KILLER, str(store.root), study, *moments, "end"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    *killed, last = done.stdout.split()
    assert last == "0", done.stderr
    assert killed == ["-9"] * len(moments)
    assert "Traceback" not in done.stderr, done.stderr
    folder = tmp_path / "study-tracked"
    assert [path.name for path in sorted(folder.iterdir()) if "new" in path.name] == []
    assert runs_of(MlflowClient(tracking_uri=default_tracking_uri(folder)), study)[1] == 4
