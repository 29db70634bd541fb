"""Call a library's function with another name in place of one it looks up in its module.

Unlike a monkeypatch this leaves the library as it is, so nothing needs to be put back and other threads
see nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any


def rebound(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """A copy of the Python `function` that finds `names` in place of its module's globals.

    Raises TypeError where it is not a plain Python function.
    """
    if not isinstance(function, FunctionType):
        raise TypeError(f"{function!r} is not a plain Python function")
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
