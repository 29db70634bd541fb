"""What a grid is asked for, as a TOML file says it. Apart from what runs it, so that its help waits for no library."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fewstep.errors import ConfigurationError
from fewstep.files import read_text
from fewstep.pipeline.settings import StudyName, parse_nfes
from fewstep.pipeline.study_file import NESTED, check_names, placed, prompts_of
from fewstep.pipeline.values import built
from fewstep.search_spaces.checked import Checked, Seed
from fewstep.tasks.measured_settings import (
    FRECHET,
    MOST_IMAGES,
    REPORT_SEED_OFFSET,
    MeasuredSettings,
    Metrics,
    taught,
)
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.loading import Loading

# The axes in the order of a cell's name, with the settings that have their values.
AXES = {
    "model": "models",
    "schedule": "schedules",
    "nfe": "nfes",
    "quantization": "quantization",
    "guidance": "guidance",
    "seed": "seeds",
    "metric": "metrics",
}
NO_QUANTIZATION = "none"
# What all cells of a model share.
SHARED = ("features", "reference", "conditions", "statistics", "loading", "judge", "teacher")


def _as_several(value: Any) -> Any:
    return (value,) if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def _as_calls(value: Any) -> Any:
    return parse_nfes(value) if isinstance(value, str) else _as_several(value)


def _same(name: str) -> Any:
    """A field as `fewstep evaluate` has it."""
    return copy(MeasuredSettings.model_fields[name])


Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_several)]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Calls = Annotated[int, Field(ge=1, le=200)]


class GridSettings(Checked):
    """Everything that decides what a grid computes.

    A cell is one value of each axis. `per_model` holds what a model has otherwise than the others, by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: StudyName = Field("grid", description="the grid's name on the tracking server")
    models: Texts = Field(description="bundled models' names or diffusers directories")
    schedules: Texts = Field(
        description="PRESET/GRID, also as a pattern such as */karras-zero; or with calls of their own: "
        "PRESET/GRID@CALLS, a schedule's file, a finished study's folder"
    )
    nfes: Annotated[tuple[Calls, ...], BeforeValidator(_as_calls)] = Field(
        (), description="denoiser calls of PRESET/GRID, as 3-6 or 3,5,8"
    )
    quantization: Texts = Field(
        (NO_QUANTIZATION,),
        description="none, a folder made by `fewstep quantize`, or a config: wBITSaBITS-PROCEDURE-COVERAGE or its file",
    )
    guidance: Annotated[tuple[Scale, ...], BeforeValidator(_as_several)] = Field(
        (1.0,), description="scales of classifier-free guidance; 1: none"
    )
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_as_several)] = Field(
        (REPORT_SEED_OFFSET,), description="seeds of the starting noise"
    )
    metrics: Metrics = Field((FRECHET,), description=MeasuredSettings.model_fields["metric"].description)
    images: int = Field(1000, ge=2, le=MOST_IMAGES, description="images of each cell")
    calibration: str = Field(
        "",
        description="schedule that configs are calibrated along, as PRESET/GRID@CALLS or a file [default: "
        "unipc-2-bh2/karras-zero at the most calls]",
    )
    features: str = _same("features")
    reference: str = _same("reference")
    conditions: Conditions = _same("conditions")
    statistics: str = _same("statistics")
    loading: Loading = _same("loading")
    judge: str = _same("judge")
    teacher: str = _same("teacher")
    per_model: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description=f"by a model's name, what it has of its own: {', '.join(SHARED)}"
    )

    @model_validator(mode="before")
    @classmethod
    def _has_no_empty_axis(cls, fields: Any) -> Any:
        for name in AXES.values() if isinstance(fields, Mapping) else ():
            given = fields.get(name, None)
            if given is not None and isinstance(given, str | list | tuple) and not len(given):
                raise ValueError(f"{name} is empty: give at least one value, or leave it out")
        return fields

    @field_validator("models", "schedules", "nfes", "quantization", "guidance", "seeds")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is given twice")
        return values

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        own_guidance = [own["conditions"].get("guidance", 1) for own in self.per_model.values() if "conditions" in own]
        if fixed := [scale for scale in (self.conditions.guidance, *own_guidance) if scale != 1]:
            raise ValueError(f"guidance is an axis: write guidance = [{fixed[0]:g}] above all tables")
        if self.teacher and not any(map(taught, self.metrics)):
            raise ValueError(
                f"no metric of {', '.join(self.metrics)} compares with a teacher: leave teacher away, or measure "
                "perceptual"
            )
        for name, own in self.per_model.items():
            if name not in self.models:
                raise ValueError(f"per_model.{name} is none of the models {', '.join(self.models)}: name one of them")
            if other := [key for key in own if key not in SHARED]:
                raise ValueError(f"per_model.{name} cannot set {other[0]!r}: choose from {', '.join(SHARED)}")
        return self

    def of_model(self, model: str, guidance: float, metrics: tuple[str, ...], quantized: str = "") -> MeasuredSettings:
        """What is sampled and measured of a model; ConfigurationError where that cannot be."""
        own = self.per_model.get(model, {})
        fields = {name: getattr(self, name) for name in SHARED}
        fields |= {name: value for name, value in own.items() if name not in NESTED}
        for name in NESTED:
            fields[name] = {**getattr(self, name).model_dump(), **own.get(name, {})}
        fields["conditions"]["guidance"] = guidance
        if not any(map(taught, metrics)):
            fields["teacher"] = ""
        return built(MeasuredSettings, {**fields, "model": model, "metric": metrics, "quantized": quantized})


class ReportSettings(Checked):
    """What a grid's report shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: Texts = Field(("schedule",), description="axes down the pivot table and heat map")
    columns: Texts = Field(("nfe",), description="axes across them")
    against: str = Field(
        "", description="AXIS=VALUE: compare each cell with the one that has this value, paired over the noise"
    )

    @model_validator(mode="after")
    def _has_axes(self) -> Self:
        check_pivot(self.rows, self.columns)
        return self


def check_pivot(down: Sequence[str], across: Sequence[str]) -> None:
    """ConfigurationError for an axis that is none, or named twice, or where there is none."""
    for axis in (*down, *across):
        if axis not in AXES:
            raise ConfigurationError(f"{axis!r} is no axis: choose from {', '.join(AXES)}")
        if [*down, *across].count(axis) > 1:
            raise ConfigurationError(f"axis {axis!r} is named twice: a table has it down or across")
    if not down or not across:
        raise ConfigurationError("a table needs an axis down and one across: give both")


# -- reading --------------------------------------------------------------------------------------------


def read_grid_file(path: Path) -> dict[str, Any]:
    """What a grid's TOML file sets, paths taken from its folder; ConfigurationError where it is none."""
    text = read_text(path, "the grid's file", ConfigurationError)
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no TOML file: {error}") from None
    try:
        return {"study": path.stem, **grid_fields(fields, path.parent)}
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def grid_fields(fields: Mapping[str, Any], folder: Path = Path()) -> dict[str, Any]:
    """The fields with the places that they name found from `folder`; ConfigurationError for a name that is none."""
    check_names(GridSettings, fields)
    made = _placed(fields, folder)
    own = made.get("per_model", {})
    if not isinstance(own, Mapping) or not all(isinstance(each, Mapping) for each in own.values()):
        raise ConfigurationError("per_model is a table of tables: write [per_model.MODEL] and settings below")
    if own:
        for name, each in own.items():
            check_names(MeasuredSettings, each, f"per_model.{name}.")
        made["models"] = _as_several(made.get("models", ()))
        made["per_model"] = {placed(name, folder): _placed(each, folder) for name, each in own.items()}
    return made


def _placed(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    made = {name: value for name, value in fields.items() if value is not None}
    for name in ("models", "schedules", "quantization", "metrics", "calibration", *SHARED):
        value = made.get(name)
        if isinstance(value, str):
            made[name] = placed(value, folder)
        elif isinstance(value, list | tuple):
            texts = [str(each) if isinstance(each, Path) else each for each in value]
            made[name] = tuple(placed(each, folder) if isinstance(each, str) else each for each in texts)
    if isinstance(asked := made.get("conditions"), Mapping) and "prompts" in asked:
        made["conditions"] = {**asked, "prompts": prompts_of(asked["prompts"], folder)}
    return made


def grid_settings(*layers: Mapping[str, Any]) -> GridSettings:
    """The settings that layers of fields make, later over earlier; ConfigurationError where they make none."""
    fields: dict[str, Any] = {}
    for layer in layers:
        nested = {name: {**fields.get(name, {}), **layer.get(name, {})} for name in NESTED}
        fields |= dict(layer) | {name: values for name, values in nested.items() if values}
    for name, what in (("models", "--model NAME"), ("schedules", "--schedule PRESET/GRID")):
        if name not in fields:
            raise ConfigurationError(f"a grid needs {name}: give a grid's file that has them, or {what}")
    return built(GridSettings, fields)
