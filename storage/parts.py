"""A directory of immutable Parquet files on any filesystem: publish whole, list, read, remove.

A file becomes visible by one rename, after its bytes are on disk; whatever a crash leaves behind is a
`.tmp` file that no reader looks at. Names sort in the order of writing, and hold checksums of the bytes: Parquet has
one for each page of data, and none for what says how they are read. Files of before that have a random name.
"""

import hashlib
import os
import re
import struct
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from fewstep.errors import DamagedFileError, StorageError
from fewstep.files import DENIED, patiently
from fewstep.storage.masking import without_secrets

VERSION_KEY = b"fewstep.schema_version"

# A file's number, and checksums of all its bytes and of its footer; or what older files have in their place.
_NAME = re.compile(r"part-(\d{12,})-(?:([0-9a-f]{16})-([0-9a-f]{16})|[0-9a-f]{8})\.parquet")
_LISTINGS = 20
# Of larger files, a reader of keys checks the footer and the pages alone.
_CHECKED_WHOLE = 8 * 2**20
# Of larger files it is noted that they were checked whole: from then on the footer and the pages are.
_CHECKED_EACH_TIME = 2**18
_END = 8

# What is wrong with a file of this schema and version, or nothing.
Check = Callable[[pa.Schema, int], str]


@dataclass(frozen=True, order=True)
class Part:
    """One published file: `number` orders it, size (bytes) and time of change (ns) tell replacement."""

    number: int
    name: str
    size: int
    changed: int

    @property
    def checksums(self) -> tuple[str, str] | None:
        """Of all bytes and of the footer, None for files that have none."""
        match = _NAME.fullmatch(self.name)
        return (match[2], match[3]) if match and match[2] else None


@dataclass(frozen=True)
class Facts:
    """What a part's footer says."""

    rows: int
    schema_version: int


def open_filesystem(root: str | Path) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path on it of a local path or of a URI that pyarrow knows.

    Raises StorageError when pyarrow cannot open the URI.
    """
    if "://" not in str(root):
        return pafs.LocalFileSystem(), str(Path(root).absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(str(root))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(
            f"cannot open the store {without_secrets(str(root))}: {without_secrets(one_line(error))}; check the address"
        ) from error
    return filesystem, path


def _digest(data: pa.Buffer) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _footer(data: pa.Buffer) -> pa.Buffer:
    """What says how a Parquet file is read, with its length and the closing mark."""
    (length,) = struct.unpack("<I", data[data.size - _END : data.size - _END + 4].to_pybytes())
    return data[data.size - _END - length :]


def one_line(error: BaseException) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _make_durable_directory(path: Path) -> None:
    if path.is_dir():
        return
    _make_durable_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PartDirectory:
    """The published files of one table beneath `path` on `filesystem`."""

    def __init__(self, path: str, filesystem: pafs.FileSystem) -> None:
        self.path = path.rstrip("/")
        self.filesystem = filesystem
        self._local = isinstance(filesystem, pafs.LocalFileSystem)
        self._known: set[Part] = set()

    def file(self, part: Part) -> str:
        """The full path of a part on the filesystem."""
        return f"{self.path}/{part.name}"

    def list(self) -> list[Part]:
        """Every published file, in order. Complete even while another process compacts.

        Raises StorageError when the directory cannot be read.
        """
        # One scan can miss both a merged file, published behind it, and the inputs, removed ahead of
        # it. A scan that still has all of the one before cannot: see the removal, see the merged file.
        before = self._scan()
        for _ in range(_LISTINGS):
            after = self._scan()
            if before.keys() <= after.keys():
                return sorted(after.values())
            before = after
        raise StorageError(f"{self.path} changes faster than it can be listed: try again when it is quiet")

    def publish(self, table: pa.Table, number: int) -> Part:
        """Write a table as one new file, durable on return.

        Where the filesystem refuses for a while (full, read-only), it waits, see `patiently`. Raises StorageError
        when it goes on refusing; then no file is visible, or, when only the last sync failed, the whole file.
        """
        sink = pa.BufferOutputStream()
        # No two files are equal, even where their rows are: a merge removes what it was made of.
        made = {**(table.schema.metadata or {}), b"fewstep.file": uuid.uuid4().hex.encode()}
        pq.write_table(table.replace_schema_metadata(made), sink, compression="zstd", write_page_checksum=True)
        data = sink.getvalue()
        name = f"part-{number:012d}-{_digest(data)}-{_digest(_footer(data))}.parquet"
        target = f"{self.path}/{name}"

        def write() -> None:
            try:
                self._write(f"{target}.tmp", data)
                self._rename(f"{target}.tmp", target)
            except (OSError, pa.ArrowException):
                self._discard(f"{target}.tmp")
                raise

        try:
            patiently(write, f"cannot write into {self.path}", DENIED)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(
                f"cannot write {target}: {one_line(error)}; what was stored before is kept: free space or make the "
                "store writable, then retry"
            ) from error
        return Part(number, name, data.size, self._written_at(target))

    def facts(self, part: Part) -> Facts:
        """Row count and schema version from a part's footer; errors as in `read`."""
        return self._facts(part, self._open(part))

    def read(
        self, part: Part, columns: Sequence[str], check: Check, keys: bool = False, coded: Collection[str] = ()
    ) -> tuple[pa.Table, Facts]:
        """The rows of one part, of `columns` those that the file has, and what its footer says.

        With `keys`, of a large file only the footer and the pages that are read are checked. Columns `coded` come as
        dictionaries where the file holds text. Raises FileNotFoundError when it was compacted away, DamagedFileError
        when its content is torn, not Parquet, other than its name says or refused by `check`, StorageError when the
        filesystem refuses to read it.
        """
        source = self._open(part, not keys, coded)
        try:
            # The reader's own schema has dictionaries where they were asked for, this one what was written.
            facts, schema = self._facts(part, source), source.metadata.schema.to_arrow_schema()
            if wrong := check(schema, facts.schema_version):
                raise self.damaged(part, wrong)
            present = set(schema.names)
            table = source.read(columns=[name for name in columns if name in present], use_threads=False)
            if part.checksums is None:
                table.validate(full=True)
            return table, facts
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise self._explain(part, error) from error

    def _facts(self, part: Part, source: pq.ParquetFile) -> Facts:
        # What lost its version is told by the checksum, where there is one.
        version = (source.metadata.metadata or {}).get(VERSION_KEY, b"1" if part.checksums else b"none")
        if not version.isdigit():
            raise self.damaged(part, f"its schema version is {version.decode(errors='replace')!r:.40}")
        return Facts(source.metadata.num_rows, int(version))

    def remove(self, part: Part) -> None:
        """Delete a part that a merged one replaces; one that is gone already is fine."""
        try:
            self.filesystem.delete_file(self.file(part))
        except FileNotFoundError:
            return
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot delete {self.file(part)}: {one_line(error)}") from error

    def _written_at(self, path: str) -> int:
        try:
            return self.filesystem.get_file_info(path).mtime_ns or 0
        except (OSError, pa.ArrowException):
            return 0  # only costs a second look at the file

    def _scan(self) -> dict[str, Part]:
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        try:
            entries = self.filesystem.get_file_info(selector)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot list {self.path}: {one_line(error)}; check the store") from error
        parts = {}
        for entry in entries:
            match = _NAME.fullmatch(entry.base_name)
            if match and entry.type == pafs.FileType.File:
                part = Part(int(match[1]), entry.base_name, entry.size, entry.mtime_ns or 0)
                parts[part.name] = part
        return parts

    def _open(self, part: Part, whole: bool = False, coded: Collection[str] = ()) -> pq.ParquetFile:
        path = self.file(part)
        try:
            source = self.filesystem.open_input_file(path)
            content = self._checked(part, source, whole) if part.checksums else source
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot read {path}: {one_line(error)}; check its permissions") from error
        try:
            return pq.ParquetFile(content, read_dictionary=list(coded), page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise self._explain(part, error) from error

    def _checked(self, part: Part, source: pa.NativeFile, whole: bool) -> pa.NativeFile:
        """The file, or its bytes in memory, once they are known to be those that were written."""
        assert part.checksums is not None
        of_all, of_footer = part.checksums
        size = source.size()
        if (whole or size <= _CHECKED_WHOLE) and part not in self._known:
            data = source.read_buffer(size)
            if _digest(data) != of_all:
                raise self.damaged(part, "its bytes are not those that were written")
            if size > _CHECKED_EACH_TIME:
                self._known.add(part)
            return pa.BufferReader(data)
        source.seek(size - _END)
        length = struct.unpack("<I", source.read(4))[0]
        source.seek(max(0, size - _END - length))
        if _digest(source.read_buffer(min(size, _END + length))) != of_footer:
            raise self.damaged(part, "its footer is not the one that was written")
        return source

    def _explain(self, part: Part, error: Exception) -> StorageError:
        # Only the system sets errno; Parquet's own complaints about the bytes come without one.
        if isinstance(error, OSError) and error.errno:
            return StorageError(f"cannot read {self.file(part)}: {one_line(error)}; check the disk")
        return self.damaged(part, one_line(error))

    def damaged(self, part: Part, reason: str) -> DamagedFileError:
        """The error that says so."""
        return DamagedFileError(
            f"{self.file(part)} is damaged: {reason}; the other files are still read, "
            f"delete it or restore it from a copy"
        )

    def _write(self, path: str, data: pa.Buffer) -> None:
        if not self._local:
            self.filesystem.create_dir(self.path, recursive=True)
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        _make_durable_directory(Path(self.path))
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _rename(self, source: str, target: str) -> None:
        if not self._local:
            self.filesystem.move(source, target)
            return
        os.rename(source, target)
        _sync_directory(Path(self.path))

    def _discard(self, path: str) -> None:
        try:
            self.filesystem.delete_file(path)
        except (OSError, pa.ArrowException):
            return  # the first error is the one to report, and readers ignore the leftover
