"""Files that appear whole or not at all, and a filesystem that is full or locked for a while."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from fewstep.errors import StorageError

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
