"""Records survive storing, and files of every schema version open."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import StorageError
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.point import JointPoint, edit_of, parse_point
from fewstep.storage.records import EvaluationRecord, EventRecord, MomentsRecord, Record, StudyRecord
from fewstep.storage.tables import Table

RECORDS: list[type[Record]] = [EvaluationRecord, MomentsRecord, StudyRecord, EventRecord]
GOLDEN = Path(__file__).parent / "golden"
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def through_arrow(record: Record) -> Record:
    table = pa.Table.from_pylist([record.to_row()], schema=record.schema)
    (row,) = table.to_pylist()
    assert type(record).from_table(table) == [type(record).from_row(row)]
    return type(record).from_row(row)


numbers = st.floats(allow_nan=False)
zones = st.integers(-12, 12).map(lambda hours: timezone(timedelta(hours=hours)))


@settings(max_examples=50, deadline=None)
@given(
    value=st.none() | numbers,
    metrics=st.dictionaries(st.text(), numbers),
    error=st.text(st.characters(exclude_categories=["Cs"])),
    at=st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=zones),
)
def test_an_evaluation_comes_back_as_it_went(evaluation, value, metrics, error, at):
    record = evaluation(1, value=value, metrics=metrics, error=error, finished_at=at)
    assert through_arrow(record) == record


@settings(max_examples=25, deadline=None)
@given(mean=st.binary(), scatter=st.binary())
def test_moments_come_back_byte_for_byte(mean, scatter):
    record = MomentsRecord("base", 64, 32, 2, mean, scatter)
    assert through_arrow(record) == record


def test_records_of_one_table_share_nothing_that_may_change(evaluation):
    rows = [evaluation(order, metrics={"distance": 0.5}).to_row() for order in range(3)]
    first, *others = EvaluationRecord.from_table(pa.Table.from_pylist(rows, schema=EvaluationRecord.schema))
    first.metrics["distance"] = 1.0
    assert [r.metrics for r in others] == [{"distance": 0.5}] * 2


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_has_a_column_and_every_unique_column_a_field(record):
    assert set(record.schema.names) == {entry.name for entry in fields(record)}
    assert set(record.unique) <= set(record.schema.names)


@pytest.mark.parametrize("record", RECORDS)
def test_a_row_that_lacks_columns_is_filled(record):
    filled = record.from_row({record.unique[0]: "only this"})
    assert through_arrow(filled) == filled
    assert getattr(filled, record.unique[0]) == "only this"


def test_a_row_of_a_newer_version_opens_without_its_further_columns(evaluation):
    record = evaluation(1)
    assert EvaluationRecord.from_row(record.to_row() | {"later": 1}) == record


def test_a_missing_value_and_a_time_without_zone_are_refused(evaluation):
    with pytest.raises(StorageError, match=r"EvaluationRecord\.nfe is None"):
        evaluation(1, nfe=None).to_row()
    with pytest.raises(StorageError, match="without a time zone"):
        evaluation(1, finished_at=datetime(2026, 1, 1)).to_row()


def test_a_damaged_json_column_is_named(evaluation):
    with pytest.raises(StorageError, match=r"column metrics .* not JSON"):
        EvaluationRecord.from_row(evaluation(1).to_row() | {"metrics": "{"})


def test_a_value_of_the_wrong_type_is_refused_and_nothing_is_written(evaluation, tmp_path):
    table = Table(EvaluationRecord, tmp_path)
    with pytest.raises(StorageError, match="does not fit table evaluations"):
        table.append([evaluation(1), evaluation(2, nfe="three")])
    assert table.read().num_rows == 0


@pytest.mark.parametrize("record", RECORDS)
def test_golden_files_of_every_version_open(record):
    """One folder for each version ever released; they are never written again."""
    versions = [GOLDEN / record.table / f"v{version}" for version in range(1, record.schema_version + 1)]
    for folder in versions:
        table = Table(record, folder)
        assert table.damaged() == []
        (stored,) = table.records()
        assert getattr(stored, record.unique[0]) == "golden"


def test_golden_moments_have_their_sums_or_none():
    (old,), (new,) = (Table(MomentsRecord, GOLDEN / "moments" / version).records() for version in ("v1", "v2"))
    assert old.sums == {}
    assert new.sums == {"denoiser_calls": 21500.0, "right": 241.0}


def test_the_golden_evaluation_has_its_values():
    (stored,) = Table(EvaluationRecord, GOLDEN / "evaluations" / "v1").records()
    assert stored.value == 1.25
    assert stored.low is None
    assert stored.metrics == {"distance": 0.5}
    assert stored.finished_at == AT


def test_a_study_has_its_id_or_one_that_follows_from_what_it_holds():
    ids = [Table(StudyRecord, GOLDEN / "studies" / v).records()[0].id for v in ("v1", "v2", "v3")]
    assert ids == ["374de9149211f2b415426b21fffb0653"] * 2 + ["0123456789abcdef" * 2]
    study = StudyRecord("search", AT, "{}", "digits", "h")
    assert replace(study, hashes={"model": "h"}, settings_json="[]").id == study.id
    assert through_arrow(study) == study
    others = [
        StudyRecord(name, at, "{}", "digits", model_hash)
        for name, at, model_hash in (
            ("s", AT, "h"),
            ("search", AT + timedelta(microseconds=1), "h"),
            ("search", AT, "i"),
        )
    ]
    assert len({study.id, *(other.id for other in others)}) == 4


def test_golden_evaluations_have_points_whatever_their_version():
    """What stood in columns of its own until version 2 is part of the point, also once old files are merged."""
    texts = {}
    for version in ("v1", "v2", "v3"):
        (stored,) = Table(EvaluationRecord, GOLDEN / "evaluations" / version).records()
        (alone,) = Table(EvaluationRecord, GOLDEN / "evaluations" / version).read(["candidate_json"]).to_pylist()
        assert alone["candidate_json"] == stored.candidate_json
        texts[version] = json.loads(stored.candidate_json)
    # They hold no real schedules, which was nobody's business then.
    schedule = {"kind": "schedule", "schedule": {}}
    assert texts["v1"] == schedule
    assert texts["v2"] == {
        "kind": "joint",
        "members": [schedule, {"kind": "quantization", "config": {"weight_bits": 4}}],
    }
    point = parse_point(json.dumps(texts["v3"]))
    assert isinstance(point, JointPoint)
    assert (point.hash, point.nfe) == (stored.candidate, stored.nfe)
    assert [part.kind for part in point.parts] == ["schedule", "quantization"]
    assert stored.parameters == {"nfe": 4}


def test_old_files_that_are_merged_are_of_todays_version(tmp_path, evaluation):
    for number, version in enumerate(("v1", "v2")):
        (path,) = (GOLDEN / "evaluations" / version).iterdir()
        table = pq.read_table(path).set_column(0, "study", pa.array([version]))
        pq.write_table(table, tmp_path / f"part-{number:012d}-0123abcd.parquet")
    table = Table(EvaluationRecord, tmp_path)
    table.append([evaluation(1)])
    before = table.records()
    assert table.compact() == 1
    after = Table(EvaluationRecord, tmp_path)
    assert after.records() == before
    assert [json.loads(r.candidate_json).get("kind") for r in before] == ["schedule", "joint", None]


def test_an_edit_that_stood_among_the_parameters_is_the_point(tmp_path):
    """So it was written until version 2: the schedule of the way back as candidate, the edit beside it."""
    (path,) = (GOLDEN / "evaluations" / "v2").iterdir()
    edit = {"step": -1.0, "strength_z": 2.0}
    table = pq.read_table(path)
    for column, text in (("parameters", json.dumps({"edit": edit, "latent": "z"})), ("quantization", "")):
        table = table.set_column(table.column_names.index(column), column, pa.array([text]))
    pq.write_table(table, tmp_path / "part-000000000000-0123abcd.parquet")
    (stored,) = Table(EvaluationRecord, tmp_path).records()
    assert json.loads(stored.candidate_json) == {"kind": "edit", "edit": edit}
    assert edit_of(parse_point(stored.candidate_json)) == EditConfig(**edit)
    assert stored.parameters == {"latent": "z"}
    (alone,) = Table(EvaluationRecord, tmp_path).read(["parameters"]).to_pylist()
    assert json.loads(alone["parameters"]) == {"latent": "z"}
