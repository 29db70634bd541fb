"""Whose fault a failure is: the candidate's, which every try would meet, or the machine's, which the next may not.

Memory, disk, handles, pipes, connections and the GPU itself are the machine's; whatever else is raised is the
candidate's. What was the machine's is tried again, and given up with a reason that begins with GAVE_UP.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator

GAVE_UP = "gave up"
# What is kept of a traceback: frames, and characters of one that was printed.
FRAMES, LONGEST = 20, 4000
# As failures of the machine were once stored, under the name of what Ray raised.
_ONCE_STORED = (
    "OutOfMemoryError:",
    "ObjectReconstructionFailedError:",
    "LocalRayletDiedError:",
    "NodeDiedError:",
    "ObjectLostError:",
    "OwnerDiedError:",
    "OutOfDiskError:",
    "ObjectStoreFullError:",
    "RaySystemError:",
    "WorkerCrashedError:",
)

_CODES = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "ESTALE", "EBUSY", "ENODEV", "ENXIO"),
        *("EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EINTR", "ENOBUFS", "ETIMEDOUT", "EREMOTEIO"),
    )
    if hasattr(errno, name)
}
_TYPES = (MemoryError, ConnectionError, TimeoutError)
# torch's, by name: to tell them apart must not import it.
_NAMES = {"OutOfMemoryError", "AcceleratorError", "OutOfMemory"}
# What libraries raise as a plain RuntimeError.
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "unable to allocate")
_WORDS = (
    *_MEMORY,
    "no space left on device",
    "too many open files",
    "can't start new thread",
    "cuda error",
    "cudnn_status_",
    "cublas_status_",
    "cudnn error",
    "broken pipe",
)


def is_machines(error: BaseException) -> bool:
    """Whether a failure, or one that it came of, is the machine's, as is whatever ends a process."""
    return any(_is_machines(each) for each in _chain(error))


def _is_machines(error: BaseException) -> bool:
    if not isinstance(error, Exception) or isinstance(error, _TYPES):
        return True
    if any(kind.__name__ in _NAMES for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError) and error.errno in _CODES:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _WORDS)


def is_memory(error: BaseException) -> bool:
    """Whether memory gave out, of the machine or the GPU: less at a time may fit."""
    kinds = {"OutOfMemoryError", "OutOfMemory", "MemoryError"}
    named = any(kind.__name__ in kinds for kind in type(error).__mro__)
    text = str(error).lower()
    return named or (isinstance(error, RuntimeError) and any(words in text for words in _MEMORY))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def told(error: BaseException) -> str:
    """A failure on one line, with its type."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
        # Python raises this one in its place wherever it leaves a generator.
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """What somebody else's error begins with, for a line of ours; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def traced(error: BaseException) -> str:
    """Where a failure was raised, a line a frame, the innermost last; files without the folders they lie in."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    lines = [f"{short_file(frame.filename)}:{frame.lineno} in {frame.name}" for frame in frames]
    return "\n".join([*lines, told(error)])


def short_file(path: str) -> str:
    """A source file from its package on, else its name: where somebody keeps it is nobody's business."""
    found = re.search(r"(?:site-packages|python3\.\d+)/(.+)$|/(fewstep/.+)$", path)
    return next(filter(None, found.groups())) if found else path.rpartition("/")[2]


def without_folders(text: str) -> str:
    """A traceback as somebody else printed it, its end, with its files as `short_file` says."""
    shown = re.sub(r'File "([^"\n]+)"', lambda found: f'File "{short_file(found[1])}"', text)
    return shown.strip()[-LONGEST:]


def given_up(what: str, tries: int, reason: str) -> str:
    """The error of a task that the machine failed at every time it ran alone."""
    return f"{GAVE_UP}: the {what} {tries} time{'s' * (tries != 1)} at this task ({reason})"


def may_succeed(error: str) -> bool:
    """Whether a failure, as it was recorded, was the machine's: another try may succeed."""
    return error.startswith((GAVE_UP, *_ONCE_STORED))
