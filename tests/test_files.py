"""Files appear whole or not at all, also where the disk is full for a while."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep import files
from fewstep.errors import StorageError
from fewstep.files import write_text


def _failing(times: int, reason: int) -> Callable[..., None]:
    replace, left = os.replace, [times]

    def fail(*arguments: str) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(reason, os.strerror(reason))
        replace(*arguments)

    return fail


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_may_pass_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    path = write_text(tmp_path / "table.csv", "old")
    monkeypatch.setattr(files, "PAUSE", 0.01)
    monkeypatch.setattr(os, "replace", _failing(3, reason))
    assert write_text(path, "new").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES, errno.ENOTDIR])
def test_what_does_not_pass_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    path = write_text(tmp_path / "table.csv", "old")
    # Rights and folders that are none are not waited for.
    monkeypatch.setattr(files, "PATIENCE", 0.05 if reason == errno.ENOSPC else 1000.0)
    monkeypatch.setattr(files, "PAUSE", 0.01)
    monkeypatch.setattr(os, "replace", _failing(-1, reason))
    with pytest.raises(StorageError, match=f"cannot write {path}: {os.strerror(reason)}"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
