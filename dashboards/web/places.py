"""The studies beneath the folders that the dashboard was given, found again as they come and go."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.errors import ConfigurationError, FewstepError
from fewstep.storage.lease import holder
from fewstep.storage.records import EventRecord, StudyRecord
from fewstep.storage.store import Store

_DEEP = 4
_PAUSE = 1.0
# Folders in which no study is, and those that a study's folder fills itself.
_OTHERS = ("mlartifacts", "mlruns", "node_modules")
_OWN = ("tables", "schedules", "quantized", "edits", "strengths")


@dataclass(frozen=True)
class Entry:
    """One study in one folder; `slug` is its name in addresses."""

    folder: Path
    study: str
    slug: str
    record: StudyRecord | None
    store: Store = field(compare=False, repr=False)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """As stored, {} where they cannot be read or there are none."""
        try:
            found = json.loads(self.record.settings_json) if self.record else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def space(self) -> str:
        """What is searched, in a word."""
        if not self.record:
            return "evaluations"
        if "subject" in self.settings:
            return "edit"
        return str(self.settings.get("space") or ("grid" if (self.folder / "cells.csv").is_file() else "evaluations"))

    @property
    def model(self) -> str:
        """The model's name, of a folder that which says most."""
        text = self.record.model if self.record else ""
        return "/".join(Path(text).parts[-2:]) if text.startswith(("/", "~")) else text

    @property
    def place(self) -> str:
        """The folder, from where the server was started if it is beneath."""
        here = Path.cwd()
        return str(self.folder.relative_to(here) if self.folder.is_relative_to(here) else self.folder)

    @property
    def title(self) -> str:
        """The folder's name, and the study's where it says more."""
        return self.study if self.study == self.folder.name else f"{self.folder.name} · {self.study}"

    @property
    def budget(self) -> int | None:
        """Denoiser calls that the search may spend."""
        value = self.settings.get("budget")
        return value if isinstance(value, int) else None

    @property
    def nfes(self) -> list[int]:
        """What it was asked for."""
        value = self.settings.get("nfes") or self.settings.get("nfe") or []
        return [n for n in value if isinstance(n, int)] if isinstance(value, list) else []

    @property
    def running(self) -> bool:
        """Whether a driver of this machine holds the folder, or one of another says that it does."""
        return holder(self.folder) is not None

    def stamp(self) -> str:
        """Another text when anything of the study was written."""
        parts = [
            part.name for table in self.store.tables[:1] + self.store.tables[2:] for part in table.directory.list()
        ]
        return hashlib.sha256(json.dumps([parts, self.running]).encode()).hexdigest()[:16]

    def events(self) -> list[EventRecord]:
        """What happened, in order."""
        return sorted(self.store.events.records(where={"study": self.study}), key=lambda event: event.order)


@dataclass(frozen=True)
class Unread:
    """A folder that cannot be shown, and why."""

    folder: Path
    reason: str


class Places:
    """Everything beneath some folders; ConfigurationError where one of them is no folder."""

    def __init__(self, folders: list[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                what = "is no folder" if folder.exists() else "is not there"
                raise ConfigurationError(f"{folder} {what}: give folders of studies, or folders that hold such folders")
        self.folders = [folder.resolve() for folder in folders]
        self._stores: dict[Path, Store] = {}
        self._lock, self._at = threading.Lock(), 0.0
        self._known: tuple[list[Entry], list[Unread]] | None = None

    def find(self) -> tuple[list[Entry], list[Unread]]:
        """The studies by folder, and the folders that could not be read; what was found a moment ago is kept."""
        with self._lock:
            if self._known is None or time.monotonic() - self._at > _PAUSE:
                self._known, self._at = self._find(), time.monotonic()
            return self._known

    def _find(self) -> tuple[list[Entry], list[Unread]]:
        entries: dict[str, Entry] = {}
        unread: list[Unread] = []
        for root in self.folders:
            for folder in _study_folders(root, _DEEP):
                store = self._stores.setdefault(folder, Store(folder))
                try:
                    found = _entries(folder, store)
                except (FewstepError, OSError) as error:
                    unread.append(Unread(folder, " ".join(str(error).split())))
                    continue
                entries |= {entry.slug: entry for entry in found}
                if not found and (damage := store.damaged()):
                    unread.append(Unread(folder, damage[0][1]))
        return sorted(entries.values(), key=lambda e: (str(e.folder), e.study)), unread

    def entry(self, slug: str) -> Entry | None:
        """The study of an address; a slug is looked up among those found and never becomes a path."""
        return next((entry for entry in self.find()[0] if entry.slug == slug), None)


def _study_folders(folder: Path, deep: int) -> list[Path]:
    found = [folder] if (folder / "tables").is_dir() else []
    if deep == 0:
        return found
    skipped = (*_OTHERS, *_OWN) if found else _OTHERS
    try:
        inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    except OSError:
        return found
    for child in inside:
        if child.name not in skipped and not child.name.startswith("."):
            found += _study_folders(child, deep - 1)
    return found


def _entries(folder: Path, store: Store) -> list[Entry]:
    records = {record.study: record for record in store.studies.records()}
    if records:
        return [Entry(folder, name, _slug(folder, name), record, store) for name, record in records.items()]
    # Evaluations that belong to no search, as those of `fewstep evaluate`.
    names = store.evaluations.read(["study"])["study"].unique().to_pylist()
    return [Entry(folder, name, _slug(folder, name), None, store) for name in names]


def _slug(folder: Path, study: str) -> str:
    word = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:40] or "study"
    mark = hashlib.sha256(f"{folder}\n{study}".encode()).hexdigest()[:6]
    return f"{word}-{mark}"
