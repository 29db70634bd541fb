"""Options made from the fields of settings types: name, type, default and meaning are typed once, at the field.

`@options(subject=SUBJECT, execution=EXECUTION)` gives a command the options of both and calls it with the two
settings, checked. A value is read by `value_of`, whether it comes as `--field value` or `--set field=value`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.values import built, fields_of, find_field, kinds_of, put, value_of
from fewstep.tasks.measured_settings import MeasuredSettings, SubjectSettings

Command = Callable[..., None]


@dataclass(frozen=True)
class Fields:
    """Options from the fields of `settings`; those of nested settings (conditions) are named `conditions.labels`.

    `only` and `without` choose among them, `hidden` ones work without being in the help. `flags` are names that are
    not the field's, `texts` say what a field means that has no description, `defaults` are the command's own. The
    command gets the settings, or, `partial`, the given values alone, nested as the settings are. `settable` adds --set.
    """

    settings: type[BaseModel]
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False
    settable: bool = False
    shows_defaults: bool = True

    @functools.cached_property
    def fields(self) -> dict[str, FieldInfo]:
        """The chosen fields by path."""
        found = fields_of(self.settings)
        chosen = {path: info for path, info in found.items() if not self.only or path in self.only}
        missing = [path for path in (*self.only, *self.without, *self.hidden) if path not in found]
        assert not missing, f"{self.settings.__name__} has no fields {missing}"
        return {path: info for path, info in chosen.items() if path not in self.without}

    def parameters(self) -> list[inspect.Parameter]:
        """One parameter an option, for typer to read."""
        made = [self._parameter(path, info) for path, info in self.fields.items()]
        if self.settable:
            text = "any other setting; may be repeated"
            option = typer.Option("--set", metavar="NAME=VALUE", help=text)
            made.append(_keyword("set", Annotated[list[str] | None, option]))
        return made

    def _parameter(self, path: str, info: FieldInfo) -> inspect.Parameter:
        name = path.rpartition(".")[2]
        flag = self.flags.get(path) or "--" + name.replace("_", "-")
        default = self.defaults.get(path, info.get_default(call_default_factory=True))
        text = self.texts.get(path) or info.description or ""
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        told = default is not None and default is not False and shown != ""
        if self.shows_defaults and told and not info.is_required():
            text = f"{text} [default: {shown}]".strip()
        is_flag = info.annotation is bool
        if is_flag and default:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        shape: dict[str, Any] = {"help": text, "show_default": False, "hidden": path in self.hidden}
        if not is_flag:
            shape["metavar"] = metavar(info.annotation)
        kind: Any = bool if is_flag else list[str] if is_many(info.annotation) else str
        if info.is_required() and not self.partial:
            return _keyword(name, Annotated[kind, typer.Option(flag, **shape)], inspect.Parameter.empty)
        return _keyword(name, Annotated[kind | None, typer.Option(flag, **shape)])

    def take(self, given: dict[str, Any]) -> Any:
        """The settings, or the given values, of a command's arguments, which they are taken from."""
        values: dict[str, Any] = {}
        for path, info in self.fields.items():
            value = given.pop(path.rpartition(".")[2], None)
            if isinstance(value, list):
                # Given more than once, they are all meant; typer gives an empty list where there is none.
                value = ",".join(value) if value else None
            if value is not None:
                put(values, path, value_of(path, info, value) if isinstance(value, str) else value)
        for pair in (given.pop("set", None) or ()) if self.settable else ():
            name, equals, text = pair.partition("=")
            named = {flag.removeprefix("--"): path for path, flag in self.flags.items()}
            path, info = find_field(self.settings, named.get(name.strip(), name.strip()))
            if not equals:
                raise ConfigurationError(f"--set {pair}: write it as --set {path}=VALUE")
            put(values, path, value_of(path, info, text.strip()))
        return values if self.partial else built(self.settings, with_defaults(self.defaults, values))


def options(**groups: Fields) -> Callable[[Command], Command]:
    """Give a command the options of `groups`; its parameter of a group's name gets what they say."""

    def decorate(function: Command) -> Command:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name not in groups]
        made = [p for group in groups.values() for p in group.parameters()]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + made

        @functools.wraps(function)
        def command(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group.take(given)
            function(**given)

        # A Signature refuses two options of one name.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        # For who reads a command line without running it, as the tests of the documentation do.
        command.fields = groups  # type: ignore[attr-defined]
        return command

    return decorate


def _keyword(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def is_many(annotation: Any) -> bool:
    """Whether a field holds any number of values."""
    return any(get_origin(kind) is tuple and get_args(kind)[-1:] == (Ellipsis,) for kind in kinds_of(annotation))


def metavar(annotation: Any) -> str:
    """What the help says of a field's type."""
    kinds = [kind for kind in kinds_of(annotation) if kind is not type(None)]
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind) if choice]
    if choices:
        return f"[{'|'.join(choices)}]"
    names = {int: "INTEGER", float: "NUMBER"}
    return names.get(kinds[0], "LIST" if get_origin(kinds[0]) is tuple else "TEXT")


def with_defaults(defaults: Mapping[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values over a command's own defaults."""
    made: dict[str, Any] = {}
    for path, value in defaults.items():
        put(made, path, value)
    return made | values


SUBJECT = Fields(MeasuredSettings)
UNJUDGED = Fields(MeasuredSettings, without=("judge",))
# What is sampled and not measured.
UNMEASURED = Fields(SubjectSettings, without=("features", "reference", "metric", "judge", "integer"))
EXECUTION = Fields(ExecutionSettings)
# What runs in one process asks for its device alone.
DEVICE = Fields(ExecutionSettings, only=("device",))
