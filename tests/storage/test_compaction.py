"""Compaction keeps files few and may be killed at any point."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import StorageError
from fewstep.storage.compaction import SEALED_ROWS, Piece, choose_all, choose_merge
from fewstep.storage.parts import Part, PartDirectory
from fewstep.storage.records import EventRecord, StudyRecord
from fewstep.storage.tables import SMALL_PARTS, Table


class Killed(BaseException):
    """Stands for the end of the process."""


def pieces(sizes):
    return [Piece(Part(i, f"p{i}", 100, 0), rows) for i, rows in enumerate(sizes)]


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_a_hundred_thousand_rows_need_few_files_and_few_rewrites(batch):
    files: list[int] = []
    rewritten = 0
    for _ in range(0, 100_000, batch):
        files.append(batch)
        if sum(rows < SEALED_ROWS for rows in files) > SMALL_PARTS:
            merged = {part.number for part in choose_merge(pieces(files))}
            first, total = min(merged), sum(files[i] for i in merged)
            assert merged == set(range(first, first + len(merged)))
            files[first : first + len(merged)] = [total]
            rewritten += total
    assert sum(files) >= 100_000
    assert len(files) <= 100
    assert rewritten <= 8 * sum(files)


@given(st.lists(st.tuples(st.integers(1, 2 * SEALED_ROWS), st.booleans()), max_size=30))
def test_only_neighbours_that_may_be_merged_are_merged(entries):
    candidates = [Piece(Part(i, f"p{i}", 100, 0), rows, fixed) for i, (rows, fixed) in enumerate(entries)]
    may = {piece.part.number for piece in candidates if piece.small}
    for merge in [choose_merge(candidates), *choose_all(candidates)]:
        numbers = [part.number for part in merge]
        assert len(numbers) != 1
        assert set(numbers) <= may
        assert not numbers or numbers == list(range(numbers[0], numbers[-1] + 1))


def test_appending_compacts_by_itself(new_table, event):
    table = new_table(EventRecord, small_parts=4)
    for order in range(50):
        table.append([event(order)])
    assert len(table.directory.list()) <= 4 + 5
    assert [record.order for record in table.records()] == list(range(50))
    table.compact()
    assert len(table.directory.list()) == 1
    assert [record.order for record in table.records()] == list(range(50))


def test_a_compaction_that_fails_does_not_fail_the_append(new_table, event, monkeypatch):
    table = new_table(EventRecord, small_parts=4)

    def refuse(self, part):
        raise StorageError("read-only")

    monkeypatch.setattr(PartDirectory, "remove", refuse)
    for order in range(12):
        table.append([event(order)])
    assert [record.order for record in table.records()] == list(range(12))


@pytest.mark.parametrize("step", range(8))
def test_a_compaction_killed_at_any_step_loses_and_doubles_nothing(new_table, event, monkeypatch, step):
    table = new_table(EventRecord)
    for order in range(3):
        table.append([event(order, "first")])
        table.append([event(order, "second"), event(order + 1, "early")])
    before = table.read()
    steps = iter(range(100))

    def dying(operation):
        def call(*arguments):
            if next(steps) == step:
                raise Killed
            return operation(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("_write", "_rename", "remove"):
            patch.setattr(PartDirectory, name, dying(getattr(PartDirectory, name)))
        with pytest.raises(Killed):
            table.compact()
    again = new_table(EventRecord)
    assert again.read().equals(before)
    again.append([event(9)])
    again.compact()
    assert again.read().slice(0, before.num_rows).equals(before)
    assert [record.order for record in again.records()][-1] == 9


@settings(max_examples=20, deadline=None)
@given(removed=st.sets(st.integers(0, 4)), latest=st.booleans())
def test_any_inputs_left_over_change_nothing(tmp_path_factory, event, removed, latest):
    record = StudyRecord if latest else EventRecord
    table = Table(record, tmp_path_factory.mktemp("left"))
    for i in range(5):
        at = event(0).at
        row = StudyRecord(f"s{i % 2}", at, str(i), "", "") if latest else event(i % 2, str(i))
        table.append([row])
    before = {tuple(row.items()) for row in table.read().to_pylist()}
    inputs = table.directory.list()
    kept = [Path(table.directory.file(part)) for i, part in enumerate(inputs) if i not in removed]
    contents = [path.read_bytes() for path in kept]
    table.compact()
    for path, content in zip(kept, contents, strict=True):
        path.write_bytes(content)
    for _ in range(2):
        assert {tuple(row.items()) for row in table.read().to_pylist()} == before
        table.compact()
    assert len(table.directory.list()) == 1


KILLED = """
import os, signal, sys
from fewstep.storage.parts import PartDirectory
from fewstep.storage.records import EventRecord
from fewstep.storage.tables import Table

remove, count = PartDirectory.remove, 0

def remove_two_then_die(self, part):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    remove(self, part)

PartDirectory.remove = remove_two_then_die
Table(EventRecord, sys.argv[1]).compact()
"""


def test_kill_9_in_the_middle_of_a_compaction(tmp_path, event):
    table = Table(EventRecord, tmp_path)
    for order in range(6):
        table.append([event(order)])
    before = table.read()
    done = subprocess.run([sys.executable, "-P", "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 5
    assert Table(EventRecord, tmp_path).read().equals(before)
    table.compact()
    assert len(list(tmp_path.iterdir())) == 1
    assert table.read().equals(before)


def test_files_of_few_large_rows_are_merged_too():
    """Moments of 2,048 features: 17 MB a row, four rows an evaluation."""
    row = 17 * 2**20
    files = [Piece(Part(i, f"p{i}", 4 * row, 0), 4) for i in range(100)]
    merge = choose_merge(files)
    assert merge == [piece.part for piece in files[-4:]]
    assert not Piece(Part(0, "p", 16 * row, 0), 16).small
    assert [len(group) for group in choose_all(files)] == [4] * 25
    # Two of them would be too large to merge.
    assert not Piece(Part(0, "p", 200 * 2**20, 0), 2).small


def test_many_small_files_become_few(tmp_path, event):
    table = Table(EventRecord, tmp_path, small_parts=10_000)
    for order in range(300):
        table.append([event(order)])
    (tmp_path / "part-000000000150-0.parquet.tmp").write_bytes(b"torn")
    assert table.compact()
    assert len(table.directory.list()) == 1
    assert [r.order for r in table.records()] == list(range(300))
