"""A study as a TOML file: its keys are the names of the settings, what it points to lies beside it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fewstep.errors import ConfigurationError
from fewstep.files import read_text
from fewstep.pipeline.settings import SearchSettings, parse_nfes
from fewstep.pipeline.values import built, fields_of, listed
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.tasks.measured_settings import ModelSettings
from fewstep.tasks.models.conditions import join_prompts, read_prompts

# Settings that may name something on disk; other values (auto, a bundled model) are left as they are.
# Fields that are settings of their own.
NESTED = ("conditions", "loading")
PLACES = ("model", "reference", "statistics", "quantized", "base_schedule", "portfolio")


def read_study_file(path: Path) -> dict[str, Any]:
    """What the file sets, paths taken from its folder; ConfigurationError where it is no study file."""
    text = read_text(path, "the study file", ConfigurationError)
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no TOML file: {error}") from None
    try:
        return {"study": path.stem, **resolved(fields, path.parent)}
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def resolved(fields: Mapping[str, Any], folder: Path = Path()) -> dict[str, Any]:
    """The fields with what they point to: schedules and prompts are read, other places found, all from `folder`.

    `nfes` may be text as 3-6, `guidance` a range as 1:8. ConfigurationError for a name that is no setting.
    """
    made: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    check_names(SearchSettings, made)
    if isinstance(made.get("conditions"), BaseModel):
        made["conditions"] = made["conditions"].model_dump()
    for name in PLACES:
        value = made.get(name)
        if isinstance(value, str) and value and _is_there(folder / value):
            made[name] = str(folder / value)
    if isinstance(features := made.get("features"), str):
        made["features"] = placed(features, folder)
    if "metric" in made:
        named = made["metric"]
        made["metric"] = tuple(placed(m, folder) for m in ([named] if isinstance(named, str) else named))
    if isinstance(made.get("nfes"), str):
        made["nfes"] = parse_nfes(made["nfes"])
    if "warm_start" in made:
        given = made["warm_start"]
        starts = [given] if isinstance(given, str | Path) else given
        made["warm_start"] = tuple(text for start in starts for text in _schedules(start, folder))
    if "conditions" in made:
        made["conditions"] = dict(made["conditions"])
        _condition(made, folder)
    return made


def placed(text: str, folder: Path) -> str:
    """A name that may hold a place, as kid:FOLDER, FILE.py:CALLABLE or both, with that place found from `folder`."""
    pieces = text.split(":")
    for i, piece in enumerate(pieces):
        may_be = i > 0 or len(pieces) == 1 or piece.endswith(".py")
        if may_be and piece and _is_there(folder / piece):
            pieces[i] = str(folder / piece)
    return ":".join(pieces)


def _condition(made: dict[str, Any], folder: Path) -> None:
    """Read the prompts' file, and a range of guidance; a scale alone searches none."""
    conditions = made["conditions"]
    if "prompts" in conditions:
        conditions["prompts"] = prompts_of(conditions["prompts"], folder)
    if "guidance" in conditions:
        scale, ends = guidance_range(str(conditions["guidance"]))
        conditions["guidance"] = scale
        if ends is not None or "guidance_range" not in made:
            made["guidance_range"] = ends


def prompts_of(given: Any, folder: Path) -> Any:
    """Prompts as conditions keep them, of a list, of a file's name, or as they are."""
    if isinstance(given, list | tuple):
        return join_prompts(given)
    if isinstance(given, Path) or (isinstance(given, str) and "\n" not in given and given):
        path = folder / given
        if isinstance(given, Path) or given.endswith(".txt") or _is_there(path):
            return read_prompts(path)
    return given


def guidance_range(text: str) -> tuple[float, tuple[float, float] | None]:
    """`7.5` is a fixed scale, `1:8` a range to search, whose middle the presets get; ConfigurationError else."""
    low, colon, high = text.partition(":")
    try:
        ends = float(low), float(high if colon else low)
    except ValueError:
        raise ConfigurationError(f"guidance {text!r}: give a scale, as 7.5, or a range to search, as 1:8") from None
    return 0.5 * (ends[0] + ends[1]), ends if colon else None


def warm_starts(path: Path | None, option: str = "--warm-start") -> tuple[str, ...] | None:
    """Schedules (JSON) of a file, or of all files in a study's folder; ConfigurationError where there is none."""
    if path is None:
        return None
    files = sorted((path / "schedules").glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ConfigurationError(f"{option} {path}: no schedules/*.json in it; give a finished study or a file")
    return tuple(load_schedule(file).to_json() for file in files)


def _schedules(start: Any, folder: Path) -> tuple[str, ...]:
    """A start is a schedule, its JSON, a file or a folder."""
    if isinstance(start, SolverSchedule):
        return (start.to_json(),)
    if str(start).lstrip().startswith("{"):
        return (str(start),)
    return warm_starts(folder / start) or ()


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # A name that no file can have, such as a schedule's JSON.
        return False


def check_names(settings: type[BaseModel], fields: Mapping[str, Any], within: str = "") -> None:
    for name, value in fields.items():
        if name not in settings.model_fields:
            raise ConfigurationError(f"unknown setting {within + name!r}: choose from {listed(settings)}")
        kind = settings.model_fields[name].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not isinstance(value, BaseModel):
            if not isinstance(value, Mapping):
                raise ConfigurationError(f"{name} is a table: write [{name}] and {', '.join(kind.model_fields)} below")
            check_names(kind, value, f"{name}.")


def _model_settings(fields: Mapping[str, Any]) -> ModelSettings:
    return built(ModelSettings, {name: value for name, value in fields.items() if name in ModelSettings.model_fields})


def search_settings(*layers: Mapping[str, Any]) -> SearchSettings:
    """The settings that layers of resolved fields make, later over earlier; ConfigurationError where they make none."""
    fields: dict[str, Any] = {}
    for layer in layers:
        nested = {name: {**fields.get(name, {}), **layer.get(name, {})} for name in NESTED}
        fields |= dict(layer) | {name: values for name, values in nested.items() if values}
    if not fields.get("model"):
        raise ConfigurationError(
            "say which model to search for: --model NAME or --model DIRECTORY, a study file with a model, or a --recipe"
        )
    base = fields.get("base_schedule")
    if isinstance(base, SolverSchedule):
        base = base.to_json()
    elif base and not base.lstrip().startswith("{"):
        from fewstep.tasks.sampling.grids import parse_schedule

        base = parse_schedule(base, _model_settings(fields).files.noise).to_json()
    if base:
        fields["base_schedule"] = base
        if fields.get("space") == "quantization" and "nfes" not in fields:
            fields["nfes"] = (SolverSchedule.from_json(base).nfe,)
    return built(SearchSettings, fields)


# -- writing --------------------------------------------------------------------------------------------


def study_toml(settings: SearchSettings) -> str:
    """A study file of the settings: what is not the default first, then every other setting as a comment."""
    changed: dict[str, list[str]] = {name: [] for name in ("", *NESTED)}
    others: dict[str, list[str]] = {name: [] for name in ("", *NESTED)}
    for path, info in fields_of(SearchSettings).items():
        table, _, name = path.rpartition(".")
        value = getattr(getattr(settings, table) if table else settings, name)
        default = info.get_default(call_default_factory=True)
        if info.is_required() or value != default:
            changed[table].append(f"{name} = {_toml(value)}")
        else:
            shown = "none" if default is None else _toml(default)
            others[table].append(f"# {name} = {shown}  # {info.description or ''}".rstrip(" #"))
    lines = [*changed[""], "", "# The other settings, with their defaults:", *others[""]]
    for table in NESTED:
        lines += ["", f"[{table}]", *changed[table], *others[table]]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # JSON's strings, numbers and lists are TOML's too.
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
