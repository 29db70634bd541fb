"""Settings by the names of their fields: found, listed, read from text and checked."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fewstep.errors import ConfigurationError
from fewstep.pipeline.settings import parse_nfes
from fewstep.search_spaces.checked import first_problem
from fewstep.tasks.models.conditions import read_prompts

Made = TypeVar("Made", bound=BaseModel)
# Fields that are not written on a command line as they are kept.
READERS: Mapping[str, Callable[[str], Any]] = {
    "nfes": parse_nfes,
    "conditions.prompts": lambda text: read_prompts(Path(text)),
}
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def fields_of(settings: type[BaseModel]) -> dict[str, FieldInfo]:
    """Every field by path, those of nested settings as `conditions.labels`."""
    found: dict[str, FieldInfo] = {}
    for name, info in settings.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= {f"{name}.{path}": inner for path, inner in fields_of(kind).items()}
        else:
            found[name] = info
    return found


def find_field(settings: type[BaseModel], name: str) -> tuple[str, FieldInfo]:
    """The path and field of a name (`labels` is `conditions.labels`); ConfigurationError lists all of them."""
    found = fields_of(settings)
    plain = name.replace("-", "_")
    path = next((path for path in found if plain in (path, path.rpartition(".")[2])), None)
    if path is None:
        raise ConfigurationError(f"unknown setting {name!r}: choose from {listed(settings)}")
    return path, found[path]


def listed(settings: type[BaseModel]) -> str:
    """Every field with its default."""
    parts = []
    for path, info in fields_of(settings).items():
        default = info.get_default(call_default_factory=True)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        parts.append(path if info.is_required() or shown in (None, "") else f"{path} ({shown})")
    return ", ".join(parts)


def value_of(path: str, info: FieldInfo, text: str) -> Any:
    """A field's value from text: numbers and JSON as such, tuples comma-separated; not yet checked."""
    if path in READERS:
        return READERS[path](text)
    kinds = kinds_of(info.annotation)
    if type(None) in kinds and text.lower() in ("none", "null", ""):
        return None
    if any(get_origin(kind) is tuple for kind in kinds):
        parts = text.replace(":", ",").split(",") if float in _inner(kinds) else text.split(",")
        many = _json(text) if text.startswith("[") else tuple(_plain(p.strip(), kinds) for p in parts if p.strip())
        twice = next((one for i, one in enumerate(many) if isinstance(one, str) and one in many[:i]), None)
        if twice is not None and not isinstance(many, str):
            raise ConfigurationError(f"{path}: {twice!r} is given twice")
        return many
    return _plain(text, kinds)


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _inner(kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(inner for kind in kinds if get_origin(kind) is tuple for inner in get_args(kind))


def _plain(text: str, kinds: tuple[Any, ...]) -> Any:
    """Text stays text where the field holds text; `1e6` is a number, and a whole one where the field wants that."""
    if bool in kinds and text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    texts = any(kind is str or get_origin(kind) is Literal for kind in (*kinds, *_inner(kinds)))
    return text if texts else _json(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a path of nested dictionaries."""
    name, dot, rest = path.partition(".")
    if dot:
        put(values.setdefault(name, {}), rest, value)
    else:
        values[name] = value


def built(settings: type[Made], values: Mapping[str, Any]) -> Made:
    """The checked settings; ConfigurationError with the first problem and the value that made it."""
    try:
        return settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        given = first["input"]
        value = f" (given: {given})" if first["loc"] and isinstance(given, str | int | float) else ""
        raise ConfigurationError(first_problem(error) + value) from None
