"""What Ray reports, told apart: what a task's own code raised, and what is the machine's.

A `RayTaskError` is what a task raised; whether that is the machine's says `tasks/faults.py`. Every other `RayError` is.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from fewstep.tasks.faults import is_machines, told, without_folders
from fewstep.tasks.work import Task, TaskResult

LONGEST = 300


class MachineError(RayError):  # type: ignore[misc]
    """A task came back, and what it failed at is the machine's; `trace` says where it was raised."""

    event, subject, verb = "actor_failed", "machine", "failed"

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class HungError(MachineError):
    """An actor took longer than its task may take."""

    event, subject, verb = "actor_hung", "worker", "hung"


def ending(error: RayError) -> tuple[str, str, str]:
    """Of the end of an actor: the event's kind, and who did what."""
    if isinstance(error, MachineError):
        return error.event, error.subject, error.verb
    died = isinstance(error, RayActorError | OutOfMemoryError)
    return ("actor_died" if died else "actor_failed"), "worker", "died"


def reason(error: RayError) -> str:
    """In a few words: what a task failed at, or what kind of error Ray reports."""
    return shortened(str(error)) if isinstance(error, MachineError) else type(error).__name__


def outcome(reference: Any, task: Task) -> TaskResult:
    """What came of a task that is done; the RayError where the machinery failed, MachineError among them."""
    try:
        result: TaskResult = ray.get(reference)
    except RayTaskError as error:
        if _is_machines(error):
            raise MachineError(_raised(error), without_folders(error.traceback_str)) from None
        return TaskResult(task, error=_raised(error))
    if result.transient:
        raise MachineError(result.error, result.trace)
    return result


def outcome_if_there(reference: Any, task: Task) -> TaskResult | None:
    """What came of a task, where that is there by now and the machinery did not fail."""
    try:
        return outcome(reference, task) if reference is not None and ray.wait([reference], timeout=0)[0] else None
    except RayError:
        return None


def refusal(error: RayError) -> str:
    """Why an actor's own code refused to start, which it would again; nothing where the machine ended it."""
    if isinstance(error, RayTaskError):
        return "" if _is_machines(error) else _raised(error)
    if not isinstance(error, RayActorError) or not error.actor_init_failed:
        return ""
    # Ray keeps no more of it than the traceback.
    last = last_line(error)
    memory = last.partition(":")[0].endswith("MemoryError")
    return "" if memory or is_machines(RuntimeError(last)) else last


def last_line(error: BaseException) -> str:
    """Where a traceback says what was raised."""
    return shortened((str(error).strip().splitlines() or [""])[-1].strip())


def shortened(text: str) -> str:
    """A reason as a row can hold it."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _is_machines(error: RayTaskError) -> bool:
    cause = getattr(error, "cause", None)
    if isinstance(cause, RayError):
        # Of no kind of its own: what was raised could not be sent.
        return type(cause) is not RayError
    return isinstance(cause, BaseException) and is_machines(cause)


def _raised(error: RayTaskError) -> str:
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception) and type(cause) is not RayError:
        return shortened(told(cause))
    return f"{type(error).__name__}: {last_line(error)}"
