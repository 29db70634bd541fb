"""Table files that were damaged in any way: what was written, or the file named; never another number."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import StorageError
from fewstep.storage.parts import VERSION_KEY
from fewstep.storage.queries import leaderboard
from fewstep.storage.records import EvaluationRecord, EventRecord, MomentsRecord, Record, StudyRecord
from fewstep.storage.store import Store
from fewstep.storage.tables import Table

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MAKERS: dict[type[Record], Callable[[int], Record]] = {
    MomentsRecord: lambda i: MomentsRecord("base", 250 * i, 250, 2, bytes(16), bytes(24), {"calls": 750.0 + i}),
    StudyRecord: lambda i: StudyRecord(f"study {i}", AT, '{"nfes": [3]}', "digits", "ab" * 8, {"torch": "2"}),
    EventRecord: lambda i: EventRecord("search", i, "refit", "fitted", AT, '{"tau": 0.5}'),
}


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes, bytes], bytes]:
    """A change of a file's bytes, given those of another file: bits flipped, cut, spliced, moved, filled."""
    kind = draw(st.sampled_from(["flip", "flip", "cut", "head", "splice", "drop", "fill", "swap", "append", "junk"]))
    spots = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4))
    length, filling = draw(st.integers(1, 64)), draw(st.binary(min_size=1, max_size=64))

    def change(own: bytes, other: bytes) -> bytes:
        places = [int(share * len(own)) for share, _ in spots]
        a = places[0]
        if kind == "flip":
            found = bytearray(own)
            for place, (_, bit) in zip(places, spots, strict=True):
                found[place] ^= 1 << bit
            return bytes(found)
        return {
            "cut": own[:a],
            "head": own[a:],
            "splice": own[:a] + other[a:],
            "drop": own[:a] + own[a + length :],
            "fill": own[:a] + bytes(length) + own[a + length :],
            "swap": other,
            "append": own + filling,
            "junk": filling,
        }[kind]

    return change


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_evaluation: Any) -> dict[type[Record], list[bytes]]:
    """Two files of each table: bytes of the first, name of it, bytes of the second."""
    makers = {EvaluationRecord: lambda i: make_evaluation(i), **MAKERS}
    root, found = tmp_path_factory.mktemp("whole"), {}
    for record, make in makers.items():
        table = Table(record, root / record.table)
        table.append([make(0), make(1)])
        table.append([make(2), make(3)])
        first, second = sorted((root / record.table).iterdir())
        found[record] = [first.name.encode(), first.read_bytes(), second.name.encode(), second.read_bytes()]
    return found


def _placed(folder: Path, files: list[bytes], changed: bytes, name: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(changed)
    (folder / files[2].decode()).write_bytes(files[3])
    return folder / name


@pytest.mark.parametrize("record", [EvaluationRecord, *MAKERS], ids=lambda record: record.table)
@given(change=damage())
def test_a_file_is_read_as_it_was_written_or_named(
    tmp_path: Path, whole: dict[type[Record], list[bytes]], record: type[Record], change: Any
) -> None:
    files = whole[record]
    path = _placed(tmp_path / "table", files, files[1], files[0].decode())
    right = Table(record, tmp_path / "table").records()
    changed = change(files[1], files[3])
    path.write_bytes(changed)
    for table in (Table(record, tmp_path / "table"), Table(record, tmp_path / "table", small_parts=0)):
        found, damaged = table.records(), table.damaged()
        if changed == files[1]:
            assert (found, damaged) == (right, [])
        else:
            assert found == right[2:]
            assert [place for place, _ in damaged] == [str(path)]
        keys = table.read(list(record.unique)).to_pylist()
        assert keys == [{name: getattr(r, name) for name in record.unique} for r in found]
        assert table.row_count() == len(found)
        table.compact()
        assert table.records() == found


@pytest.mark.parametrize("record", [EvaluationRecord, *MAKERS], ids=lambda record: record.table)
@given(change=damage())
def test_a_file_without_checksums_never_ends_in_another_error(
    tmp_path: Path, whole: dict[type[Record], list[bytes]], record: type[Record], change: Any
) -> None:
    files = whole[record]
    path = _placed(tmp_path / "table", files, change(files[1], files[3]), "part-000000000000-0123abcd.parquet")
    table, told = Table(record, tmp_path / "table"), ""
    try:
        found = table.records()
        assert len(found) >= 2
        assert {place for place, _ in table.damaged()} <= {str(path)}
        table.compact()
    except StorageError as error:
        told = str(error)
    assert "\n" not in told


values = st.sampled_from([None, "text", 3, 3.5, True, b"bytes"])


@given(
    version=st.sampled_from(["0", "1", "2", "3", "4", "99", "-1", "x", ""]),
    lost=st.sets(st.sampled_from(EvaluationRecord.schema.names)),
    replaced=st.dictionaries(st.sampled_from([*EvaluationRecord.schema.names, "further"]), values, max_size=3),
)
def test_columns_are_those_of_the_version_or_the_file_is_named(
    tmp_path: Path, make_evaluation: Any, version: str, lost: set[str], replaced: dict[str, Any]
) -> None:
    record = make_evaluation(1)
    row = {name: value for name, value in record.to_row().items() if name not in lost}
    row = {name: [value] for name, value in (row | replaced).items()}
    kinds = {n: EvaluationRecord.schema.field(n).type for n in row if n not in replaced}
    content = pa.table({n: pa.array(v, kinds.get(n)) for n, v in row.items()} or {"further": [1]})
    root = tmp_path / "store"
    shutil.rmtree(root, ignore_errors=True)
    folder = root / "tables" / "evaluations"
    folder.mkdir(parents=True)
    path = folder / "part-000000000000-0123abcd.parquet"
    pq.write_table(content.replace_schema_metadata({VERSION_KEY: version} if version else None), path)
    store, found, told = Store(root), list[EvaluationRecord](), ""
    try:
        found = store.evaluations.records()
    except StorageError as error:
        told = str(error)
    assert "\n" not in told
    if told:
        return
    if not found:
        assert [place for place, _ in store.damaged()] == [str(path)]
        return
    (stored,) = found
    assert not lost - set(replaced) - EvaluationRecord.optional
    for name in ("value", "denoiser_calls", "model_hash", "key", "images", "nfe"):
        assert getattr(stored, name) == replaced.get(name, getattr(record, name))
    leaderboard(store)
