"""One driver at a time: an advisory lock on the study directory that dies with its holder."""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fewstep.errors import LeaseError, StorageError

_PAUSE = 0.05
_held: set[int] = set()


def _let_go_in_child() -> None:
    # A forked child shares the lock: should it outlive a killed driver, the lock would stay held.
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def holder(directory: str | Path, name: str = "driver.lock") -> dict[str, Any] | None:
    """Who holds a directory, told without touching the lock; None where nobody does, or who did is gone.

    Of another host it is only known what the file says.
    """
    try:
        told: dict[str, Any] = json.loads((Path(directory) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    try:
        if told["host"] == socket.gethostname():
            os.kill(int(told["pid"]), 0)
    except PermissionError:
        return told  # It lives, as another user's.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told


class Lease:
    """Context manager that holds `<directory>/<name>` locked; the file says who holds it.

    The kernel frees the lock when the holder ends, however it ends. Entering waits at most `wait`
    seconds; then it raises LeaseError naming the holder's pid, host and start. Raises StorageError when
    the file cannot be written or the filesystem has no locks.
    """

    def __init__(self, directory: str | Path, name: str = "driver.lock", wait: float = 0.2) -> None:
        self.path = Path(directory) / name
        self.wait = wait
        self._file: int | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"cannot open the lock {self.path}: {error.strerror}; make the directory writable"
            ) from error
        try:
            self._lock(file)
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            # The lock holds without it: on a full disk only the name is missing.
            with suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(holder).encode(), 0)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _held.add(file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In a forked child the file is closed already, and the lock is the parent's.
        if self._file is not None and self._file in _held:
            # The file stays: were it deleted, a waiting process would lock a name that nobody sees.
            _held.remove(self._file)
            with suppress(OSError):
                os.ftruncate(self._file, 0)
            os.close(self._file)
        self._file = None

    def _lock(self, file: int) -> None:
        deadline = time.monotonic() + self.wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LeaseError(
                        f"{self.path.parent} is in use by {self._holder()}: wait for it, stop it, "
                        f"or choose another directory"
                    ) from None
            except OSError as error:
                raise StorageError(
                    f"cannot lock {self.path}: {error.strerror}; put the directory on a local disk"
                ) from error
            time.sleep(_PAUSE)

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"  # it has the lock but has not written its name yet
