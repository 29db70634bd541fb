"""Which tables were seen to hold no row twice, so that the next question need not go through their keys again.

Noted in the user's cache by a table's place, as a digest of its files' names: those hold checksums of what is in the
files, so that a note cannot be about other rows. A table with files of before names held any is never noted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewstep.storage.parts import Part
from fewstep.storage.tables import Table


def is_noted(table: Table[Any], parts: Sequence[Part]) -> bool:
    """Whether the rows of these files were seen to be distinct."""
    content = _content(table, parts)
    try:
        return content is not None and _note(table).read_text() == content
    except (OSError, ValueError, RuntimeError):
        return False


def note(table: Table[Any], parts: Sequence[Part]) -> None:
    """They are; where that cannot be written it is found out anew."""
    if (content := _content(table, parts)) is not None:
        with suppress(OSError, RuntimeError):
            place = _note(table)
            place.parent.mkdir(parents=True, exist_ok=True)
            aside = place.with_suffix(f".{os.getpid()}")
            aside.write_text(content)
            os.replace(aside, place)


def _content(table: Table[Any], parts: Sequence[Part]) -> str | None:
    if not parts or any(part.checksums is None for part in parts):
        return None
    names = "\n".join((*table.record.unique, *sorted(part.name for part in parts)))
    return hashlib.sha256(names.encode()).hexdigest()


def _note(table: Table[Any]) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep" / "distinct"
    return folder / hashlib.sha256(table.directory.path.encode()).hexdigest()[:32]
