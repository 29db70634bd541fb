"""A directory of immutable Parquet files on any filesystem: publish whole, list, read, remove.

A file becomes visible by one rename, after its bytes are on disk; whatever a crash leaves behind is a
`.tmp` file that no reader looks at. Names sort in the order of writing.
"""

import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from fewstep.errors import DamagedFileError, StorageError
from fewstep.storage.masking import without_secrets

VERSION_KEY = b"fewstep.schema_version"

_NAME = re.compile(r"part-(\d{12,})-[0-9a-f]{8}\.parquet")
_LISTINGS = 20


@dataclass(frozen=True, order=True)
class Part:
    """One published file: `number` orders it, size (bytes) and time of change (ns) tell replacement."""

    number: int
    name: str
    size: int
    changed: int


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

        Raises StorageError when the filesystem refuses (read-only, full, no permission); then no file
        is visible, or, when only the last sync failed, the whole file.
        """
        name = f"part-{number:012d}-{uuid.uuid4().hex[:8]}.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        data = sink.getvalue()
        target = f"{self.path}/{name}"
        try:
            self._write(f"{target}.tmp", data)
            self._rename(f"{target}.tmp", target)
        except (OSError, pa.ArrowException) as error:
            self._discard(f"{target}.tmp")
            raise StorageError(
                f"cannot write {target}: {one_line(error)}; free space or make the store writable, then retry"
            ) from error
        return Part(number, name, data.size, self._written_at(target))

    def facts(self, part: Part) -> Facts:
        """Row count and schema version from a part's footer; errors as in `read`."""
        footer = self._open(part).metadata
        version = (footer.metadata or {}).get(VERSION_KEY, b"1")
        return Facts(footer.num_rows, int(version) if version.isdigit() else 1)

    def read(self, part: Part, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one part; of `columns`, those that the file has.

        Raises FileNotFoundError when it was compacted away, DamagedFileError when its content is torn
        or not Parquet, StorageError when the filesystem refuses to read it.
        """
        source = self._open(part)
        try:
            if columns is not None:
                present = set(source.schema_arrow.names)
                columns = [name for name in columns if name in present]
            return source.read(columns=columns, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._explain(part, error) from error

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

    def _open(self, part: Part) -> pq.ParquetFile:
        path = self.file(part)
        try:
            source = self.filesystem.open_input_file(path)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot read {path}: {one_line(error)}; check its permissions") from error
        try:
            return pq.ParquetFile(source, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._explain(part, error) from error

    def _explain(self, part: Part, error: Exception) -> StorageError:
        # Only the system sets errno; Parquet's own complaints about the bytes come without one.
        if isinstance(error, OSError) and error.errno:
            return StorageError(f"cannot read {self.file(part)}: {one_line(error)}; check the disk")
        return DamagedFileError(
            f"{self.file(part)} is damaged: {one_line(error)}; the other files are still read, "
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
