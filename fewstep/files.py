"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from fewstep.errors import StorageError


def write_whole(path: str | Path, data: bytes) -> Path:
    """Write aside, then rename; the path. Raises StorageError when the filesystem refuses."""
    path = Path(path)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(data)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; free space or choose another place") from error
    return path


def write_text(path: str | Path, text: str) -> Path:
    """The same for text, in UTF-8."""
    return write_whole(path, text.encode())
