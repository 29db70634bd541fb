"""Everything that is recorded beneath one root directory."""

import logging
from pathlib import Path

import pyarrow.fs as pafs

from fewstep.storage.parts import open_filesystem
from fewstep.storage.records import EvaluationRecord, EventRecord, MomentsRecord, StudyRecord
from fewstep.storage.tables import R, Table

_log = logging.getLogger(__name__)


class Store:
    """The tables `evaluations`, `moments`, `studies` and `events` beneath `<root>/tables/<name>/`.

    `root` is a local path or a URI that pyarrow knows, or a path on `filesystem`. Nothing is created
    before the first append. Raises StorageError when the URI cannot be opened.
    """

    def __init__(self, root: str | Path, filesystem: pafs.FileSystem | None = None) -> None:
        path = str(root)
        if filesystem is None:
            filesystem, path = open_filesystem(root)
        self.root = path
        self.filesystem = filesystem
        self.evaluations = self._table(EvaluationRecord)
        self.moments = self._table(MomentsRecord)
        self.studies = self._table(StudyRecord)
        self.events = self._table(EventRecord)
        self._told: tuple[str, ...] = ()

    def damaged(self) -> list[tuple[str, str]]:
        """(path, reason) of every file in any table that reads skip."""
        tables = (self.evaluations, self.moments, self.studies, self.events)
        return [entry for table in tables for entry in table.damaged()]

    def warn_of_damage(self) -> str:
        """Say in one line which files are damaged, what that means and what to do; empty where none is.

        The line is logged as a warning, once for the same files.
        """
        found = self.damaged()
        names = tuple(path for path, _ in found)
        line = ""
        if found:
            files = "1 damaged file is" if len(found) == 1 else f"{len(found)} damaged files are"
            line = (
                f"{files} skipped, what they held counts as not done: {', '.join(names)}; restore them from a copy, "
                f"or delete them"
            )
        if line and names != self._told:
            _log.warning(line)
        self._told = names
        return line

    def _table(self, record: type[R]) -> Table[R]:
        return Table(record, f"{self.root.rstrip('/')}/tables/{record.table}", self.filesystem)
