"""MODULE:CALLABLE, or FILE.py:CALLABLE: what a user's own code offers, and the address of that code.

A module is looked for where Python finds modules, and in the working folder.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.errors import ConfigurationError
from fewstep.tasks.faults import first_line
from fewstep.tasks.metrics._network import weights_hash

# Where files lie that this machine was sent, by what names them: the file, or the module beside.
SENT: dict[str, str] = {}
NAMED = re.compile(r"(?P<place>[^:]+):(?P<name>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)")
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_loadable(given: str) -> bool:
    """Whether it names a callable of a module or of a Python file."""
    named = NAMED.fullmatch(given)
    return named is not None and (named["place"].endswith(".py") or bool(MODULE.fullmatch(named["place"])))


def code_of(text: str) -> tuple[str, Path] | None:
    """What names the code at the end of a text such as KIND:FILE.py:CALLABLE, and its file; None where it has none.

    A module that Python finds elsewhere than in the working folder is installed, and no file of the user's.
    """
    given = ":".join(text.split(":")[-2:])
    if not is_loadable(given):
        return None
    place = given.rpartition(":")[0]
    file = Path(place) if place.endswith(".py") else _beside(place)
    if not file.is_file():
        return None
    if not place.endswith(".py") and (spec := importlib.util.find_spec(place.partition(".")[0])) is not None:
        own = spec.origin is not None and Path(spec.origin).resolve() == file.resolve()
        return (place, file) if own else None
    return place, file


def load(given: str, what: str) -> Any:
    """What has the name. ConfigurationError, which starts with `what`, where it is not there or its import fails."""
    named = NAMED.fullmatch(given)
    if named is None or not is_loadable(given):
        raise ConfigurationError(f"{what} {given!r}: write it as MODULE:CALLABLE or FILE.py:CALLABLE")
    try:
        found: Any = _module(named["place"])
        for part in named["name"].split("."):
            found = getattr(found, part)
    except Exception as error:
        # The code is the user's: it may raise anything when it is imported.
        reason = first_line(error)
        raise ConfigurationError(f"{what} {given!r} cannot be loaded: {type(error).__name__}: {reason}") from None
    return found


def load_callable(given: str, what: str, takes: str, device: str) -> tuple[Any, str]:
    """A callable that `takes` something, and its content address; a class, or a function without arguments, makes it.

    ConfigurationError, which starts with `what`, where there is none. A torch module is frozen, and on the device.
    """
    found = made = load(given, what)
    if not callable(found):
        raise ConfigurationError(f"{what} {given} cannot be called: give {takes}")
    if not isinstance(found, nn.Module) and (isinstance(found, type) or needs_arguments(found) == 0):
        try:
            made = found()
        except Exception as error:
            raise ConfigurationError(f"{what} {given} fails: {type(error).__name__}: {error}") from None
        if not callable(made):
            raise ConfigurationError(f"{what} {given} gives {type(made).__name__}: give {takes}")
    if isinstance(made, nn.Module):
        made = made.to(device).eval().requires_grad_(False)
    return made, address(given, found, made)


def address(given: str, *made: Any) -> str:
    """SHA-256 of the name after the colon, the source files of what was loaded and made, and networks' weights."""
    digest = hashlib.sha256(short_name(given).encode())
    for one in made:
        digest.update(_source(one))
        if isinstance(one, nn.Module):
            digest.update(weights_hash(one.state_dict()).encode())
    return digest.hexdigest()


def short_name(given: str) -> str:
    """The name after the colon."""
    return given.rpartition(":")[2]


def needs_arguments(loaded: Any) -> int:
    """How many arguments without a default a callable has; 0 where it does not say."""
    try:
        parameters = inspect.signature(loaded).parameters.values()
    except (TypeError, ValueError):
        return 0
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in kinds for p in parameters)


def _beside(module: str) -> Path:
    return Path(*module.split(".")).with_suffix(".py")


def _module(place: str) -> Any:
    place = SENT.get(place, place)
    if not place.endswith(".py"):
        beside = _beside(place)
        if place in sys.modules or importlib.util.find_spec(place.partition(".")[0]) is not None:
            return importlib.import_module(place)
        if not beside.is_file():
            raise ModuleNotFoundError(f"no module {place}, and no {beside} in this folder")
        place = str(beside)
    path = Path(place).resolve()
    # Under its whole path, so that two files of one name are two modules.
    name = f"_fewstep_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {place}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _source(one: Any) -> bytes:
    """The bytes of the file that a thing, or else its type, is written in; its type's name where there is none."""
    for known in (one, type(one)):
        try:
            file = inspect.getsourcefile(known)
        except TypeError:
            continue
        if file is not None and Path(file).is_file():
            return Path(file).read_bytes()
    return type(one).__qualname__.encode()
