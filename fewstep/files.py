"""Files that appear whole or not at all, a filesystem that is full for a while, and text read by one rule."""

from __future__ import annotations

import codecs
import errno
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep.errors import DataError, FewstepError, StorageError

# UTF-32's little-endian mark begins with UTF-16's, so it comes first.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# How long a refused write is tried again, in seconds, and how long the first pauses are.
PATIENCE, PAUSE, LONGEST_PAUSE = 60.0, 0.5, 5.0
# What may pass by itself: no space, no quota, read-only, a device that fails or is busy, a network's trouble.
PASSING = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EBUSY,
        errno.EAGAIN,
        errno.ENOMEM,
        errno.ENFILE,
        errno.EMFILE,
        errno.ESTALE,
        errno.ENOLCK,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
    )
)
# And, where writing went well before, rights that were taken away.
DENIED = frozenset((errno.EACCES, errno.EPERM))
_log = logging.getLogger(__name__)


def patiently(write: Callable[[], None], refused: str, also: frozenset[int] = frozenset()) -> None:
    """Call `write` until it is not refused, for at most PATIENCE seconds, with one message; then its OSError.

    Only errors of PASSING and `also` are waited for; `refused` says in words what is.
    """
    deadline, pause = time.monotonic() + PATIENCE, PAUSE
    told = False
    while True:
        try:
            write()
        except OSError as error:
            left = deadline - time.monotonic()
            if error.errno not in PASSING | also or left <= 0:
                raise
            if not told:
                _log.warning("%s: %s; trying again for %.0f s", refused, error.strerror, PATIENCE)
            told = True
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if told:
                _log.warning("written after all, going on")
            return


def write_whole(path: str | Path, data: bytes) -> Path:
    """Write aside, then rename; the path. Raises StorageError when the filesystem refuses."""
    path = Path(path)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(data)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    try:
        patiently(write, f"cannot write {path}")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; free space or choose another place") from error
    return path


def write_text(path: str | Path, text: str) -> Path:
    """The same for text, in UTF-8."""
    return write_whole(path, text.encode())


def read_text(path: str | Path, what: str = "", error: type[FewstepError] = DataError) -> str:
    r"""The text of a file, as UTF-8, or as UTF-16 or UTF-32 where a byte order mark says so; lines end with \n.

    Raises `error`, which says what file of which kind (`what`, as in `the prompts`) cannot be read and why: it is not
    there, a byte is none of its encoding, or a character is none of a text.
    """
    name = f"cannot read {what} {path}" if what else f"cannot read {path}"
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as problem:  # ValueError: a name that no file can have.
        raise error(f"{name}: {getattr(problem, 'strerror', None) or problem}") from None
    try:
        return _decoded(data)
    except ValueError as problem:
        raise error(f"{name}: {problem}; save it as UTF-8 text") from None


def read_json(path: str | Path, what: str = "", error: type[FewstepError] = DataError) -> Any:
    """The value of a JSON file, read as `read_text` reads; `error` also where it is no JSON."""
    text = read_text(path, what, error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"cannot read {f'{what} ' if what else ''}{path}: it is no JSON: {problem}") from None


def lines_of(text: str) -> list[str]:
    r"""The lines of a text, which \n, \r\n or \r ends, and none of what else `str.splitlines` takes for an end."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _decoded(data: bytes) -> str:
    """The text of some bytes. ValueError says which byte or character is none of it."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        at = data.index(b"\0")
        raise ValueError(f"byte 0x00 at position {at}, line {_line(data, at)}: UTF-16 without its byte order mark?")
    try:
        text = "\n".join(lines_of(data.decode(encoding)))
    except UnicodeDecodeError as error:
        shown = f"byte 0x{data[error.start]:02x} at position {error.start}, line {_line(data, error.start)}"
        raise ValueError(f"{shown}, is no {encoding.removesuffix('-sig').upper()}") from None
    for mark, meaning in (("\0", "a zero character"), ("\ufeff", "a byte order mark within the text")):
        if mark in text:
            raise ValueError(f"{meaning} at line {text[: text.index(mark)].count(chr(10)) + 1}")
    return text


def _line(data: bytes, at: int) -> int:
    return data[:at].count(b"\n") + 1
