"""How a command ends when it is told to: the first signal closes what is open, the next one ends it at once.

A signal is a KeyboardInterrupt, whichever it is, since that is what libraries let through. Outside the command line
nothing here acts.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from fewstep.storage.masking import masked_argument, without_secrets

SIGNALS = tuple(number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP"))


class _Stop:
    """What this process was told, and what it says then."""

    number: int | None = None
    watched: tuple[signal.Signals, ...] = ()
    command: Callable[[], str] | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block signals stop it, but those that this process was started to ignore, as nohup does."""
    _Stop.number, _Stop.command, _Stop.watched = None, None, ()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _Stop.watched = tuple(number for number, handler in before.items() if handler != signal.SIG_IGN)
    watch()
    try:
        yield
    finally:
        for number in _Stop.watched:
            # Once stopped, nothing is left to close: what comes now ends an interpreter that waits for threads.
            signal.signal(number, signal.SIG_DFL if asked() else before[number] or signal.SIG_DFL)
        _Stop.watched = ()


def watch() -> None:
    """Take signals again, after a library that took them: Ray does when it starts."""
    for number in _Stop.watched:
        signal.signal(number, _end if asked() else _stop)


def resume_with(command: Callable[[], str]) -> None:
    """What to type to go on, asked for when the command stops; without it, the same again."""
    _Stop.command = command


def asked() -> bool:
    """Whether a signal came."""
    return _Stop.number is not None


def check() -> None:
    """KeyboardInterrupt where a signal came whose own was lost: what a finalizer raises goes nowhere."""
    if asked() and _Stop.watched:
        raise KeyboardInterrupt


def stopped() -> int:
    """Say on stderr how to go on; the exit status."""
    command = typed() if _Stop.command is None else _Stop.command()
    # A terminal that is gone takes no line.
    with suppress(OSError, ValueError):
        print(f"stopped, resume with: {without_secrets(command)}", file=sys.stderr, flush=True)
    return 128 + (_Stop.number or signal.SIGINT)


def typed() -> str:
    """This command as it was typed, to be typed again, without passwords."""
    return shlex.join(["fewstep", *map(masked_argument, sys.argv[1:])])


def spelled(words: Sequence[str], options: Mapping[str, Any]) -> str:
    """A command with its options, to be typed; those without a value are left out."""
    texts = {name: ",".join(map(str, v)) if isinstance(v, tuple) else v for name, v in options.items()}
    given = [(f"--{name.replace('_', '-')}", value) for name, value in texts.items()]
    flags = [[flag] if value is True else [flag, str(value)] for flag, value in given if value not in (None, False)]
    return shlex.join(["fewstep", *words, *(masked_argument(word) for pair in flags for word in pair)])


def _stop(number: int, frame: FrameType | None) -> None:
    _Stop.number = number
    watch()
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
