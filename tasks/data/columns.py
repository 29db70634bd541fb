"""Which columns of an Arrow table hold images and labels: the layout of Hugging Face's `datasets`, or plain bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from fewstep.errors import DataError
from fewstep.tasks.data.shards import part
from fewstep.tasks.data.source import Record
from fewstep.tasks.faults import first_line
from fewstep.tasks.image_file import Stored

IMAGES = ("image", "img", "images", "jpg", "png", "webp", "pixel_values")
LABELS = ("label", "labels", "fine_label", "coarse_label", "class", "cls")


@dataclass(frozen=True)
class Columns:
    """Names of the columns, and the classes of the labels where they have names."""

    image: str
    label: str | None
    classes: tuple[str, ...]
    # Whether labels are names themselves.
    texts: bool = False

    @property
    def names(self) -> list[str]:
        """Those that are read."""
        return [self.image] if self.label is None else [self.image, self.label]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Labels by name."""
        return {name: i for i, name in enumerate(self.classes)}

    def numbered(self, texts: Iterable[str]) -> Columns:
        """The same with the classes that names in the label's column make, in alphabetical order."""
        return Columns(self.image, self.label, tuple(sorted(set(texts))), texts=True)


def records(
    batches: Iterable[pa.RecordBatch], columns: Columns, indices: range, path: Path, before: int = 0
) -> Iterator[Record]:
    """The rows of these numbers, counted in the batches; `before` is how many rows the file holds before them."""
    start = 0
    for batch in batches:
        images = batch.column(columns.image)
        labels = None if columns.label is None else batch.column(columns.label)
        for row in part(indices, start, len(batch)):
            name = f"{path} row {before + start + row}"
            label = None if labels is None else labels[row].as_py()
            if columns.texts:
                label = None if label is None else columns.numbers[label]
            known = label is not None and label >= 0
            value = images[row].as_py()
            if isinstance(value, dict) and value.get("path"):
                name += f" ({value['path']})"
            yield Record(name, _stored(value, name, path.parent), label if known else None)
        start += len(batch)
        if not indices or start > indices[-1]:
            return


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What Arrow says of a damaged file becomes a DataError with the file's name."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}; replace it") from error


def columns_of(schema: pa.Schema, place: str, features: Mapping[str, Any] | None = None) -> Columns:
    """What a schema's columns are; `features` as in dataset_info.json, by default those that the schema itself holds.

    Raises DataError where no column holds images, or more than one and none by a usual name.
    """
    found = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in IMAGES if name in found]
    if not found:
        raise DataError(f"{place} has no column of images, bytes or {{bytes, path}}: it has {', '.join(schema.names)}")
    if not named and len(found) > 1:
        raise DataError(f"{place} has several columns of bytes ({', '.join(found)}): call the one with images `image`")
    usable = [name for name in LABELS if name in schema.names and _holds_labels(schema.field(name).type)]
    label = usable[0] if usable else None
    text = label is not None and not _is_number(schema.field(label).type)
    described = (_features(schema) if features is None else features).get(label or "", {})
    names = described.get("names") if isinstance(described, dict) else None
    return Columns((named or found)[0], label, tuple(map(str, names or ())), texts=text)


def _stored(value: Any, name: str, folder: Path) -> Stored:
    given = value if isinstance(value, dict) else {"bytes": value}
    if given.get("bytes"):
        return bytes(given["bytes"])
    if given.get("path"):
        return folder / str(given["path"])
    raise DataError(f"{name} holds no image: remove the row")


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind))


def _features(schema: pa.Schema) -> dict[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}
