"""A damaged file costs the rows in it and nothing else, and is named until it is gone."""

from __future__ import annotations

import pytest

from fewstep.errors import DamagedFileError
from fewstep.storage.records import EventRecord
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
    part = table.directory.list()[0]
    three_files[0].write_bytes(b"")
    with pytest.raises(DamagedFileError, match=part.name):
        table.load(part)


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
