"""What is stored: one frozen dataclass a table, each with its Arrow schema and schema version.

Record                  behaviour shared by all: to_row, from_row, filling of columns an older file lacks
├── EvaluationRecord    one candidate scored at one rung
├── MomentsRecord       feature moments of one run of image indices
├── StudyRecord         one study and its settings
└── EventRecord         something that happened in a study

A schema only ever grows: a new column comes with a default and a higher `schema_version`, and files
of every older version open for good.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa

from fewstep.errors import StorageError
from fewstep.storage.masking import told_text

_TIME = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_TEXTS = 256


def _schema(required: Mapping[str, pa.DataType], optional: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    columns = [pa.field(name, kind, nullable=False) for name, kind in required.items()]
    columns += [pa.field(name, kind, nullable=True) for name, kind in (optional or {}).items()]
    return pa.schema(columns)


def _empty(column: pa.Field) -> object:
    """The value of a column that an older file does not have and the record names no default for."""
    if column.nullable:
        return None
    kind = column.type
    if pa.types.is_timestamp(kind):
        return _EPOCH
    if pa.types.is_integer(kind):
        return 0
    if pa.types.is_floating(kind):
        return 0.0
    return b"" if pa.types.is_large_binary(kind) else ""


def _widens(kind: pa.DataType, own: pa.DataType) -> bool:
    """Whether every value of one type is one of another, as versions may have stored it."""
    same = (
        (pa.types.is_integer, pa.types.is_integer),
        (pa.types.is_floating, pa.types.is_floating),
        (pa.types.is_timestamp, pa.types.is_timestamp),
        (pa.types.is_large_string, pa.types.is_string),
        (pa.types.is_binary, pa.types.is_large_binary),
    )
    return any(of_kind(kind) and of_own(own) for of_kind, of_own in same)


def _parsed(texts: Sequence[str], parse: Callable[[str], Any]) -> list[Any]:
    """Each text's own object; a text that is there many times, as versions are, is read once."""
    known: dict[str, Any] = {}
    found = []
    for text in texts:
        if text not in known:
            if len(known) > _MOST_TEXTS:
                known.clear()
            known[text] = parse(text)
        value = known[text]
        found.append(dict(value) if isinstance(value, dict) else value)
    return found


@dataclass(frozen=True)
class Preference:
    """Among rows of one identity the first with `value` in `column` counts; without one, that of the latest `time`."""

    column: str
    value: str
    time: str
    """A column of times: unlike its place among the files, a row's time stays what it is when files are merged."""


@dataclass(frozen=True)
class Record:
    """Base of all records; subclasses set the class variables."""

    table: ClassVar[str]
    schema_version: ClassVar[int]
    schema: ClassVar[pa.Schema]
    unique: ClassVar[tuple[str, ...]]
    """Columns that identify a row; of rows that agree on them only one is ever read."""
    latest_wins: ClassVar[bool] = False
    """Which of them: the one written last, or else the one written first."""
    preferred: ClassVar[Preference | None] = None
    """Which of them instead, where not all are worth the same."""
    defaults: ClassVar[Mapping[str, object]] = {}
    """Stored values for columns that an older file lacks, where the empty value would be wrong."""

    optional: ClassVar[frozenset[str]] = frozenset()
    """Columns that files of an older version may lack: those that no value and no identity hangs on."""

    prose: ClassVar[frozenset[str]] = frozenset()
    """Columns that tell of what happened in words, of libraries too: they are kept without secrets, see `masking`."""

    needed: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Further columns of an older file that the value of a column is worked out from."""

    quick: ClassVar[tuple[str, ...]] = ()
    """Fields that are always in memory, those with a plain default among them: see `backing`."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A field that was left where the record came from, see `backing`."""
            known = vars(self)
            if "_backing" not in known or name not in type(self).schema.names:
                raise AttributeError(f"{type(self).__name__} has no {name}")
            source, row = known["_backing"]
            return source.value(name, row)

    def __getstate__(self) -> dict[str, Any]:
        """All fields, wherever they are."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def begins(self, name: str, text: str) -> bool:
        """Whether a field is stored as a text that begins so; it is not read for that where its column can tell."""
        source, row = vars(self).get("_backing", (None, 0))
        if name not in vars(self) and hasattr(source, "begins"):
            return bool(source.begins(name, text, row))
        value = getattr(self, name)
        return (json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)).startswith(text)

    @classmethod
    def upgrade(cls, table: pa.Table, version: int) -> pa.Table:
        """What was stored under an older schema version, in today's terms; of the columns that are there."""
        return table

    @classmethod
    def wrong(cls, found: pa.Schema, version: int) -> str:
        """What is wrong with a file of these columns and this version, or nothing.

        Only an older version may lack columns or have narrower numbers, and only a newer one has further columns.
        """
        if repeated := sorted({name for name in found.names if found.names.count(name) > 1}):
            return f"it has column {repeated[0]} twice"
        lacking = [name for name in cls.schema.names if name not in found.names]
        if version < cls.schema_version:
            lacking = [name for name in lacking if name not in cls.optional]
        if lacking:
            return f"it lacks column {', '.join(lacking)}, which every file of schema version {version} has"
        further = [name for name in found.names if name not in cls.schema.names]
        if further and version == cls.schema_version:
            return f"it has column {', '.join(further)}, which no file of schema version {version} has"
        for name in found.names:
            if name not in cls.schema.names:
                continue
            kind, own = found.field(name).type, cls.schema.field(name).type
            if kind != own and (version == cls.schema_version or not _widens(kind, own)):
                return f"column {name} holds {kind}, not {own}"
        return ""

    @classmethod
    def deciding(cls) -> tuple[str, ...]:
        """The columns that say which rows count."""
        return cls.unique if cls.preferred is None else (*cls.unique, cls.preferred.column, cls.preferred.time)

    @classmethod
    def default(cls, column: str) -> object:
        """The stored value that fills `column` in rows of an older schema version."""
        return cls.defaults[column] if column in cls.defaults else _empty(cls.schema.field(column))

    def to_row(self) -> dict[str, Any]:
        """The record as stored values by column.

        Raises StorageError for a missing value in a required column and for a time without a zone.
        """
        row: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None and not self.schema.field(entry.name).nullable:
                raise StorageError(
                    f"{type(self).__name__}.{entry.name} is None, but every row needs it: give it a value"
                )
            if isinstance(value, datetime) and value.tzinfo is None:
                raise StorageError(
                    f"{type(self).__name__}.{entry.name} is {value} without a time zone: give a UTC time"
                )
            if entry.name in self.prose:
                value = told_text(value)
            row[entry.name] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The record of one row; columns that an older version lacks are filled, unknown ones ignored.

        Raises StorageError when a stored JSON column does not hold JSON.
        """
        values: dict[str, Any] = {}
        for column in cls.schema:
            value = row.get(column.name)
            if value is None and not column.nullable:
                value = cls.default(column.name)
            values[column.name] = cls.parsed(column.name, value)
        return cls(**values)

    @classmethod
    def from_table(cls, rows: pa.Table) -> list[Self]:
        """The records of rows that have every column: equal to `from_row` of each, in a tenth of the time."""
        columns = {column.name: rows.column(column.name) for column in cls.schema}
        if any(columns[column.name].null_count for column in cls.schema if not column.nullable):
            return [cls.from_row(row) for row in rows.to_pylist()]
        values: dict[str, Sequence[Any]] = {}
        texts = cls._json_columns()
        for name, column in columns.items():
            if pa.types.is_timestamp(column.type):
                whole = column.cast(pa.int64()).to_pylist()
                values[name] = [None if us is None else _EPOCH + timedelta(microseconds=us) for us in whole]
            elif name in texts:
                values[name] = _parsed(column.to_pylist(), lambda value, name=name: cls._json(name, value))  # type: ignore[misc]
            else:
                values[name] = column.to_pylist()
        if hasattr(cls, "__post_init__"):
            return [cls(**dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)]
        made = [cls.__new__(cls) for _ in range(rows.num_rows)]
        for record, row in zip(made, zip(*values.values(), strict=True), strict=True):
            record.__dict__.update(zip(values, row, strict=True))
        return made

    @classmethod
    def parsed(cls, name: str, value: Any) -> Any:
        """A field from its stored value."""
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        return cls._json(name, value) if name in cls._json_columns() else value

    @classmethod
    def _json(cls, name: str, text: Any) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise StorageError(
                f"column {name} of a row in table {cls.table} holds {text!r:.60}, which is not JSON: {error}"
            ) from error

    @classmethod
    @cache
    def _json_columns(cls) -> frozenset[str]:
        return frozenset(entry.name for entry in fields(cls) if entry.default_factory is dict)


# Events that are routine, and counted only: a refit of the surrogate; seconds of work by worker since `since`.
REFIT, BUSY = "refit", "busy"

# How rungs of further metrics of a report begin.
MEASURED = "measured-"


@dataclass(frozen=True)
class EvaluationRecord(Record):
    """One candidate scored at one rung. `denoiser_calls` is images x NFE, `seconds` is wall time."""

    study: str
    order: int
    """Sequence number in the study, assigned by the driver."""
    trial: int
    key: str
    """Content address of the evaluation: what would be computed, not who asked for it."""
    candidate: str
    """Hash of the point."""
    candidate_json: str
    """The whole candidate: a point of `search_spaces/point.py`, whatever its space."""
    nfe: int
    rung: str
    """Step of the ladder: the screen ('distance', 'look', 'screen'), 'frechet', 'refine', 'finals' or 'report'; or
    'measured-' with a further metric of the report."""
    origin: str
    """Who proposed it, as 'preset:ddim/karras', 'random', 'evolution' or 'surrogate'."""
    model: str
    model_hash: str
    features: str
    reference: str
    seed: int
    images: int
    metric: str
    value: float | None
    low: float | None
    high: float | None
    denoiser_calls: int
    seconds: float
    device: str
    finished_at: datetime
    status: str = "complete"
    """'complete' or 'failed'; a failed row says why in `error`."""
    error: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    """What the sampler drew: with it a study is rebuilt exactly."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further figures by name."""
    versions: dict[str, str] = field(default_factory=dict)
    """Library versions by name."""

    table: ClassVar[str] = "evaluations"
    prose: ClassVar[frozenset[str]] = frozenset(("error",))
    schema_version: ClassVar[int] = 3
    # Two studies may share an evaluation; each keeps a row, so that each can be read on its own.
    unique: ClassVar[tuple[str, ...]] = ("study", "key")
    # A failure must not hide that another try succeeded.
    preferred: ClassVar[Preference | None] = Preference("status", "complete", "finished_at")
    defaults: ClassVar[Mapping[str, object]] = {
        "status": "complete",
        "parameters": "{}",
        "metrics": "{}",
        "versions": "{}",
    }
    schema: ClassVar[pa.Schema] = _schema(
        {
            "study": pa.string(),
            "order": pa.int64(),
            "trial": pa.int64(),
            "key": pa.string(),
            "candidate": pa.string(),
            "candidate_json": pa.string(),
            "nfe": pa.int64(),
            "rung": pa.string(),
            "origin": pa.string(),
            "model": pa.string(),
            "model_hash": pa.string(),
            "features": pa.string(),
            "reference": pa.string(),
            "seed": pa.int64(),
            "images": pa.int64(),
            "metric": pa.string(),
            "parameters": pa.string(),
            "metrics": pa.string(),
            "denoiser_calls": pa.int64(),
            "seconds": pa.float64(),
            "device": pa.string(),
            "status": pa.string(),
            "error": pa.string(),
            "versions": pa.string(),
            "finished_at": _TIME,
        },
        {"value": pa.float64(), "low": pa.float64(), "high": pa.float64()},
    )
    optional: ClassVar[frozenset[str]] = frozenset(
        ("status", "error", "parameters", "metrics", "versions", "device", "seconds", "low", "high")
    )
    needed: ClassVar[Mapping[str, tuple[str, ...]]] = {"candidate_json": ("quantization", "parameters")}
    quick: ClassVar[tuple[str, ...]] = (
        *("order", "trial", "candidate", "nfe", "rung", "origin"),
        *("seed", "images", "metric", "value", "status", "error"),
    )

    @property
    def of_report(self) -> bool:
        """Whether it is of the report, by its metric or a further one."""
        return self.rung == "report" or self.rung.startswith(MEASURED)

    @classmethod
    def upgrade(cls, table: pa.Table, version: int) -> pa.Table:
        """Until version 2 `candidate_json` was a schedule's, and what else a candidate was stood in other columns."""
        if version >= 3:
            return table
        names = table.column_names
        parameters = table.column("parameters").to_pylist() if "parameters" in names else [None] * table.num_rows
        edits = [text is not None and '"edit"' in text for text in parameters]
        drawn = [json.loads(text) if edit else {} for text, edit in zip(parameters, edits, strict=True)]
        if "candidate_json" in names:
            configs = table.column("quantization").to_pylist() if "quantization" in names else [""] * table.num_rows
            rows = zip(table.column("candidate_json").to_pylist(), configs, drawn, strict=True)
            points = [_point(text, config, values.get("edit")) for text, config, values in rows]
            table = table.set_column(names.index("candidate_json"), "candidate_json", pa.array(points, pa.string()))
        if any(edits):
            left = [
                json.dumps({k: v for k, v in values.items() if k != "edit"}, sort_keys=True) if edit else text
                for text, edit, values in zip(parameters, edits, drawn, strict=True)
            ]
            table = table.set_column(names.index("parameters"), "parameters", pa.array(left, pa.string()))
        return table


def _point(candidate: str, quantization: str, edit: object) -> str:
    """The point of a row of version 1 or 2, whose candidate is the JSON of a schedule or of an ODE solver."""
    if edit is not None:
        return f'{{"kind":"edit","edit":{json.dumps(edit)}}}'
    if candidate.startswith('{"ode"'):
        return f'{{"kind":"ode","solver":{json.dumps(json.loads(candidate)["ode"])}}}'
    schedule = f'{{"kind":"schedule","schedule":{candidate}}}'
    if not quantization:
        return schedule
    return f'{{"kind":"joint","members":[{schedule},{{"kind":"quantization","config":{quantization}}}]}}'


@dataclass(frozen=True)
class MomentsRecord(Record):
    """Feature moments of the images start .. start + count - 1, as little-endian float64 bytes."""

    base: str
    """Content address of the evaluation without its image count."""
    start: int
    count: int
    dim: int
    mean: bytes
    """dim numbers; without a scatter count * dim, the features themselves."""
    scatter: bytes
    """dim * (dim + 1) / 2 numbers: the packed upper triangle. Empty where dim is 0, or the features are kept."""
    sums: dict[str, float] = field(default_factory=dict)
    """Further sums over these images by name, such as their denoiser calls; empty in rows of version 1."""

    table: ClassVar[str] = "moments"
    schema_version: ClassVar[int] = 2
    unique: ClassVar[tuple[str, ...]] = ("base", "start")
    defaults: ClassVar[Mapping[str, object]] = {"sums": "{}"}
    optional: ClassVar[frozenset[str]] = frozenset(("sums",))
    # Large: at 2,048 dimensions a row is 17 MB, and 128 of them overflow Arrow's 32-bit offsets.
    schema: ClassVar[pa.Schema] = _schema(
        {
            "base": pa.string(),
            "start": pa.int64(),
            "count": pa.int64(),
            "dim": pa.int64(),
            "mean": pa.large_binary(),
            "scatter": pa.large_binary(),
            "sums": pa.string(),
        }
    )


@dataclass(frozen=True)
class StudyRecord(Record):
    """One study and its settings; of several rows for one study the latest holds."""

    study: str
    created_at: datetime
    settings_json: str
    model: str
    model_hash: str
    versions: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    """Content addresses of what its values depend on, by what that is; empty in rows of version 1."""
    id: str = ""
    """32 hex digits that no other study has, whatever its name, and that go with a folder that is moved or copied.
    Made when the study is registered; of rows of before there were ids, derived from what they hold."""

    table: ClassVar[str] = "studies"
    schema_version: ClassVar[int] = 3
    unique: ClassVar[tuple[str, ...]] = ("study",)
    latest_wins: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, object]] = {"settings_json": "{}", "versions": "{}", "hashes": "{}"}
    optional: ClassVar[frozenset[str]] = frozenset(("versions", "hashes", "id"))
    schema: ClassVar[pa.Schema] = _schema(
        {
            "study": pa.string(),
            "created_at": _TIME,
            "settings_json": pa.string(),
            "model": pa.string(),
            "model_hash": pa.string(),
            "versions": pa.string(),
            "hashes": pa.string(),
            "id": pa.string(),
        }
    )

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", derived_id(self.study, self.model_hash, self.created_at))


def derived_id(study: str, model_hash: str, begun: datetime) -> str:
    """The id of a study that was given none: the same wherever its folder is, and as good as never another's."""
    text = json.dumps([study, model_hash, begun.isoformat()])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class EventRecord(Record):
    """Something that happened in a study: a refit, a lost actor, a resume."""

    study: str
    order: int
    kind: str
    message: str
    at: datetime
    data_json: str = "{}"

    table: ClassVar[str] = "events"
    prose: ClassVar[frozenset[str]] = frozenset(("message",))
    schema_version: ClassVar[int] = 1
    unique: ClassVar[tuple[str, ...]] = ("study", "order")
    defaults: ClassVar[Mapping[str, object]] = {"data_json": "{}"}
    optional: ClassVar[frozenset[str]] = frozenset(("message", "data_json"))
    schema: ClassVar[pa.Schema] = _schema(
        {
            "study": pa.string(),
            "order": pa.int64(),
            "kind": pa.string(),
            "message": pa.string(),
            "at": _TIME,
            "data_json": pa.string(),
        }
    )
