"""A damaged file costs the rows in it and nothing else, and is named until it is gone."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewstep.errors import DamagedFileError
from fewstep.storage import parts
from fewstep.storage.parts import VERSION_KEY
from fewstep.storage.records import EvaluationRecord, EventRecord
from fewstep.storage.store import Store
from fewstep.storage.tables import Table


@pytest.fixture
def three_files(tmp_path, event):
    table = Table(EventRecord, tmp_path)
    for order in (1, 2, 3):
        table.append([event(order, "x" * 50)])
    return sorted(tmp_path.iterdir())


def rows(table):
    return [record.order for record in table.records()]


def test_a_file_cut_anywhere_breaks_nothing_else(tmp_path, three_files):
    whole = three_files[1].read_bytes()
    table = Table(EventRecord, tmp_path)
    cuts = {*range(0, 16), *range(16, len(whole), 23), *range(len(whole) - 12, len(whole))}
    for cut in sorted(cuts):
        three_files[1].write_bytes(whole[:cut])
        assert rows(table) == [1, 3]
        ((path, reason),) = table.damaged()
        assert path == str(three_files[1])
        assert path in reason
        assert "delete it or restore it" in reason
    three_files[1].write_bytes(whole)
    assert rows(table) == [1, 2, 3]
    assert table.damaged() == []


def test_damage_within_the_data_is_found_by_its_checksum(tmp_path, three_files):
    whole = bytearray(three_files[1].read_bytes())
    found = 0
    for place in range(4, len(whole) // 2, 29):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        three_files[1].write_bytes(changed)
        table = Table(EventRecord, tmp_path)
        read = rows(table)
        assert read in ([1, 3], [1, 2, 3])
        found += read == [1, 3]
        assert len(table.damaged()) == (read == [1, 3])
    assert found > 5


def test_junk_is_named_and_neither_appending_nor_compacting_minds_it(tmp_path, three_files, event):
    three_files[1].write_bytes(b"not Parquet at all")
    table = Table(EventRecord, tmp_path, small_parts=2)
    for order in (4, 5, 6, 7):
        table.append([event(order)])
    table.compact()
    assert rows(table) == [1, 3, 4, 5, 6, 7]
    assert [path for path, _ in table.damaged()] == [str(three_files[1])]
    three_files[1].unlink()
    assert table.damaged() == []


def test_loading_a_damaged_file_says_so(tmp_path, three_files):
    table = Table(EventRecord, tmp_path)
    three_files[0].write_bytes(b"")
    part = table.directory.list()[0]
    with pytest.raises(DamagedFileError, match=part.name):
        table.load(part)


def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path, three_files):
    whole = three_files[1].read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        three_files[1].write_bytes(changed)
        table = Table(EventRecord, tmp_path)
        assert rows(table) == [1, 3], place
        assert [path for path, _ in table.damaged()] == [str(three_files[1])], place


def test_a_footer_is_checked_where_only_keys_are_read(tmp_path, three_files, monkeypatch):
    monkeypatch.setattr(parts, "_CHECKED_WHOLE", 0)
    whole = bytearray(three_files[1].read_bytes())
    place = whole.rfind(b"message")
    assert place > len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    whole[place] ^= 2
    three_files[1].write_bytes(whole)
    table = Table(EventRecord, tmp_path)
    assert table.read(["order"]).column("order").to_pylist() == [1, 3]
    assert len(table.damaged()) == 1


def _renamed(table):
    return table.rename_columns({"value": "valve"})


def _doubled(table):
    return table.append_column("value", table["value"])


def _text(table):
    return table.set_column(table.column_names.index("value"), "value", table["value"].cast("string"))


def _narrow(table):
    return table.set_column(table.column_names.index("value"), "value", table["value"].cast("float32"))


def _without(*columns):
    return lambda table: table.drop_columns(list(columns))


def _null(table):
    place = table.column_names.index("images")
    return table.set_column(place, pa.field("images", pa.int64()), pa.array([None], pa.int64()))


def _further(table):
    return table.append_column("later", pa.array(["kept"]))


def _as(version, change=lambda table: table):
    return lambda table: change(table).replace_schema_metadata({VERSION_KEY: version} if version else None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_as("3", _renamed), "it lacks column value"),
        (_as("3", _without("value")), "it lacks column value"),
        (_as("3", _without("error")), "it lacks column error"),
        (
            _as("3", _without("value", "model_hash", "denoiser_calls")),
            "it lacks column model_hash, denoiser_calls, value",
        ),
        (_as("3", _doubled), "it has column value twice"),
        (_as("3", _text), "column value holds string, not double"),
        (_as("3", _narrow), "column value holds float, not double"),
        (_as("3", _null), "column images lacks values"),
        (_as("3", _further), "it has column later"),
        (_as("2", _without("value")), "it lacks column value"),
        (_as("2", _without("key")), "it lacks column key"),
        (_as("2", _text), "column value holds string"),
        (_as("99", _without("value")), "it lacks column value"),
        (_as("99", _text), "column value holds string"),
        (_as("three"), "its schema version is 'three'"),
        (_as(""), "its schema version is 'none'"),
    ],
)
def test_columns_that_are_not_those_of_the_version_are_damage(tmp_path, evaluation, change, reason):
    table = Table(EvaluationRecord, tmp_path)
    table.append([evaluation(1)])
    (path,) = tmp_path.iterdir()
    content = pq.read_table(path, partitioning=None)
    path.unlink()
    # As older programs named their files, without checksums.
    changed = tmp_path / "part-000000000000-0123abcd.parquet"
    pq.write_table(change(content), changed)
    table.append([evaluation(2)])
    assert rows(table) == [2]
    assert rows(Table(EvaluationRecord, tmp_path)) == [2]
    ((place, told),) = table.damaged()
    assert place == str(changed)
    assert reason in told


@pytest.mark.parametrize(("change", "value"), [(_as("2", _without("error", "low")), 41.0), (_as("99", _further), 41.0)])
def test_older_versions_may_lack_columns_and_newer_ones_have_more(tmp_path, evaluation, change, value):
    table = Table(EvaluationRecord, tmp_path)
    table.append([evaluation(1, value=value)])
    (path,) = tmp_path.iterdir()
    content = pq.read_table(path, partitioning=None)
    path.unlink()
    pq.write_table(change(content), tmp_path / "part-000000000000-0123abcd.parquet")
    table = Table(EvaluationRecord, tmp_path)
    assert [(record.value, record.low, record.error) for record in table.records()] == [(value, None, "")]
    assert table.damaged() == []


@pytest.mark.parametrize("torn", [("evaluations",), ("events",), ("evaluations", "events")])
def test_damage_is_told_in_one_line_that_names_every_file(tmp_path, event, evaluation, caplog, torn):
    store = Store(tmp_path)
    assert store.warn_of_damage() == ""
    for order in range(3):
        store.events.append([event(order)])
        store.evaluations.append([evaluation(order)])
    for table in (store.events, store.evaluations):
        table.compact()
    assert store.warn_of_damage() == ""
    paths = [path for name in torn for path in (tmp_path / "tables" / name).iterdir()]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-9])
    # As a study does that goes on.
    again = Store(tmp_path)
    line = again.warn_of_damage()
    assert again.warn_of_damage() == line
    assert [record.getMessage() for record in caplog.records] == [line]
    assert "\n" not in line
    assert all(str(path) in line for path in paths)
    for path in paths:
        path.unlink()
    assert again.warn_of_damage() == ""
