"""Find published schedules in what a file holds, however they are wrapped.

The published `.pth` files hold one schedule's decisions, or a list of decisions and the score they were
found with; a search's state holds many, and our vectors keep them under `cases[i].decisions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep import files
from fewstep.errors import DataError
from fewstep.search_spaces.schedule.published import REQUIRED

DEPTH = 8


def read_json(path: Path) -> Any:
    """A JSON file's content; DataError where it cannot be read."""
    try:
        return files.read_json(path)
    except DataError as error:
        raise DataError(f"{error}; give decisions as JSON, or a published .pth file") from None


def find_published(content: Any, source: str) -> dict[str, dict[str, Any]]:
    """All decisions in `content`, by where they were found (`""`, `[0]`, `cases[2].decisions`), in its order.

    Tensors and arrays become lists. What has any of the required keys counts, so that a missing one is
    reported when it is read. Raises DataError where there are none.
    """
    found = dict(_walk(content, "", DEPTH, set()))
    if not found:
        raise DataError(
            f"{source} holds no published schedule: looked for mappings with {', '.join(REQUIRED)}, "
            f"found {_describe(content)}"
        )
    return found


def plain(value: Any, depth: int = DEPTH) -> Any:
    """The value with every tensor, array and NumPy number turned into lists and Python numbers."""
    if depth and isinstance(value, Mapping):
        return {str(key): plain(entry, depth - 1) for key, entry in value.items()}
    if depth and isinstance(value, list | tuple):
        return [plain(entry, depth - 1) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _walk(value: Any, where: str, depth: int, seen: set[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    # A file can hold the same list many times, or in itself.
    if not depth or not isinstance(value, Mapping | list | tuple) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping) and any(key in value for key in REQUIRED):
        yield where, plain(value)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _walk(entry, f"{where}.{key}".lstrip("."), depth - 1, seen)
    else:
        for i, entry in enumerate(value):
            yield from _walk(entry, f"{where}[{i}]", depth - 1, seen)


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = [str(key) for key in content][:6]
        return f"a mapping of {', '.join(keys) or 'nothing'}"
    if isinstance(content, list | tuple):
        return f"a list of {len(content)}"
    return f"a {type(content).__name__}"
