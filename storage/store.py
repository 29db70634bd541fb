"""Everything that is recorded beneath one root directory."""

import logging
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from fewstep.storage.parts import open_filesystem
from fewstep.storage.records import EvaluationRecord, EventRecord, MomentsRecord, StudyRecord
from fewstep.storage.tables import R, Table

# What a damaged file of a table takes with it, and what to do; `resume` is the command that goes on.
LOST = {
    "evaluations": "its evaluations count as not done; restore it from a copy, or delete it and `{resume}` spends what "
    "they cost again",
    "moments": "its images count as not sampled; restore it from a copy, or delete it and they are sampled again where "
    "they are needed",
    "studies": "it says what study the folder holds, and nothing is added before it is restored from a copy or deleted",
    "events": "what it told of the search is lost, no value with it; restore it from a copy, or delete it",
}
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

    @property
    def empty(self) -> bool:
        """Whether no table has a file."""
        return not any(table.directory.list() for table in self.tables)

    def damaged(self) -> list[tuple[str, str]]:
        """(path, reason) of every file in any table that reads skip."""
        return [entry for table in self.tables for entry in table.damaged()]

    @property
    def tables(self) -> tuple[Table[Any], ...]:
        """All of them."""
        return self.evaluations, self.moments, self.studies, self.events

    def describe_damage(self, resume: str) -> str:
        """Which files are damaged, what was lost with them and what to do, in one line; empty where none is.

        `resume` is the command that goes on with the study in this folder.
        """
        found = {table.record.table: table.damaged() for table in self.tables}
        told = []
        for name, entries in found.items():
            for path, reason in entries:
                why = reason.partition(" is damaged: ")[2].partition("; the other files")[0] or reason
                told.append(f"{path} is damaged ({why}): {LOST[name].format(resume=resume)}")
        return f"{'; '.join(told)}. Everything else was read" if told else ""

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
