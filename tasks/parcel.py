"""What a worker on another machine needs of this one's disk: files that settings name, read once, written there once.

Code that metrics and features name as FILE.py:CALLABLE goes too: the file alone, not what it reads or imports besides.
How their bytes travel is the caller's: `put` gives them away for a reference, `get` takes them back. A worker uses the
files themselves where it sees the same ones, as on this machine or a shared disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.tasks.metrics.spaces.loaded import SENT, code_of, load
from fewstep.tasks.models.files import find_model, zoo_names
from fewstep.tasks.models.hub import is_hub_name
from fewstep.tasks.work import Subject, WorkerSettings

Put = Callable[[Any], Any]
Get = Callable[[Any], Any]

FIELDS = ("model", "quantized", "statistics", "judge", "features", "reference")
CONDITIONS = ("classifier", "image", "mask", "map")
EDITS = ("model", "data", "text_model", "features", "judge", "identity")
TEXT_CALL = "text_call"


@dataclass(frozen=True)
class Sent:
    """One file: its place beneath what was named, its size, when it was changed (ns), and what to get it by."""

    within: str
    size: int
    changed: int
    content: Any


@dataclass(frozen=True)
class Item:
    """A file or folder that settings name; `digest` is of its content, `name` its own."""

    path: str
    name: str
    digest: str
    files: tuple[Sent, ...]


@dataclass(frozen=True)
class Parcel:
    """Settings, and what they name, by the text that names it; `code` by what names its file."""

    settings: WorkerSettings
    items: Mapping[str, Item]
    code: Mapping[str, Item] = field(default_factory=dict)
    callables: tuple[str, ...] = ()


def packed(settings: WorkerSettings, put: Put) -> Parcel:
    """Read what settings name. A model of the hub is sent too: no worker asks the hub for it again."""
    named = dict.fromkeys(_named(settings.subject))
    places = {text: place for text in named if (place := _place(text))}
    if (model := settings.subject.model) not in zoo_names() and is_hub_name(model) and model not in places:
        places[model] = find_model(model, loading=settings.subject.loading).root
    found = {text: code for text in dict.fromkeys((*named, *settings.metrics)) if (code := code_of(text))}
    return Parcel(
        settings,
        {text: _item(text, place, put) for text, place in places.items()},
        {name: _item(str(file), file, put) for name, file in dict(found.values()).items()},
        tuple(":".join(text.split(":")[-2:]) for text in found),
    )


def unpacked(parcel: Parcel, get: Get, cache: Path) -> WorkerSettings:
    """The settings for this machine; what it does not have is written to `cache`, once for all its workers.

    ConfigurationError where code that was sent cannot be loaded here, for want of what it imports, say.
    """
    SENT.update({name: _here(item.path, item, get, cache) for name, item in parcel.code.items()})
    for each in parcel.callables:
        load(each, "on a worker's machine")
    found = {text: _here(text, item, get, cache) for text, item in parcel.items.items()}
    settings = replace(parcel.settings, subject=_with(parcel.settings.subject, found))
    if settings.cache and not Path(settings.cache).is_dir():
        made = hashlib.sha256(settings.cache.encode()).hexdigest()[:16]
        settings = replace(settings, cache=str(cache / f"made-{made}"))
    return settings


def _named(subject: Subject) -> Iterator[str]:
    yield from (getattr(subject, name) for name in FIELDS)
    yield from (getattr(subject.conditions, name) for name in CONDITIONS)
    yield from _values(subject.conditions.call)
    if subject.edits:
        edits = json.loads(subject.edits)
        yield from (edits.get(name, "") for name in EDITS)
        yield from _values(edits.get(TEXT_CALL, ()))


def _values(call: Sequence[str]) -> Iterator[str]:
    """What arguments of a call, as NAME=VALUE, are given."""
    yield from (value for pair in call if (value := pair.partition("=")[2]))


def _with(subject: Subject, found: Mapping[str, str]) -> Subject:
    def to(text: str) -> str:
        return found.get(text, text)

    def called(call: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{name}={to(value)}" for name, _, value in (pair.partition("=") for pair in call))

    asked = subject.conditions
    changes: dict[str, Any] = {name: to(getattr(asked, name)) for name in CONDITIONS}
    changes["call"] = called(asked.call)
    edits = json.loads(subject.edits) if subject.edits else {}
    edits |= {name: to(edits[name]) for name in EDITS if name in edits}
    if TEXT_CALL in edits:
        edits[TEXT_CALL] = called(edits[TEXT_CALL])
    fields: dict[str, Any] = {name: to(getattr(subject, name)) for name in FIELDS}
    if any(to(text) != text for text in _named(subject)):
        fields["conditions"] = asked.model_copy(update=changes)
    return replace(subject, **fields, edits=json.dumps(edits) if edits else "")


def _place(text: str) -> Path | None:
    """The file or folder that a text names, `KIND:PATH` too; a bundled model's name is none."""
    if not text or text in zoo_names():
        return None
    places = (Path(part) for part in (text, text.partition(":")[2]) if part)
    return next((place for place in places if _exists(place)), None)


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):
        return False


def _item(text: str, place: Path, put: Put) -> Item:
    whole = place.is_dir()
    files = sorted(p for p in place.rglob("*") if p.is_file()) if whole else [place]
    sent, digest = [], hashlib.sha256()
    for file in files:
        content = np.fromfile(file, np.uint8)
        within, state = file.relative_to(place).as_posix() if whole else "", file.stat()
        digest.update(within.encode() + b"\0" + hashlib.sha256(content.data).digest())
        sent.append(Sent(within, state.st_size, state.st_mtime_ns, put(content)))
    # The model of a hub is named after the hub's name, not after its folder, which is a number.
    name = text.rpartition("/")[2] if not _exists(Path(text)) and ":" not in text else place.absolute().name
    return Item(str(place.absolute()), name, digest.hexdigest()[:16], tuple(sent))


def _here(text: str, item: Item, get: Get, cache: Path) -> str:
    kind = text[: len(text) - len(text.partition(":")[2])] if ":" in text and not _exists(Path(text)) else ""
    if _is_the_same(item):
        return f"{kind}{item.path}"
    place = cache / item.digest / item.name
    if not place.parent.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{item.digest}-", dir=cache))
        for file in item.files:
            path = aside / item.name / file.within if file.within else aside / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            np.asarray(get(file.content)).tofile(path)
        try:
            os.rename(aside, place.parent)
        except OSError:
            # Another worker was there first, with the same.
            shutil.rmtree(aside, ignore_errors=True)
            if not place.parent.is_dir():
                raise
    return f"{kind}{place}"


def _is_the_same(item: Item) -> bool:
    root = Path(item.path)
    try:
        states = [(root / file.within if file.within else root).stat() for file in item.files]
    except OSError:
        return False
    return [(s.st_size, s.st_mtime_ns) for s in states] == [(f.size, f.changed) for f in item.files]
