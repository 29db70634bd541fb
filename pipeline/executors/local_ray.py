"""A Ray of this machine's own: for this process alone, reached by nobody else.

Ray by itself listens on every interface, and writes its token into the home directory for all to read.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from fewstep.errors import ConfigurationError

# Ray puts sockets beneath its folder: what it appends to the folder's path, and the most a socket's path may have.
SOCKET = "/session_2026-01-01_00-00-00_000000_12345678/sockets/plasma_store.1"
LONGEST = 103 if sys.platform == "darwin" else 107
SHORT = Path("/tmp")
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def start(cpus: int, gpus: int, **options: Any) -> Path | None:
    """Start Ray with these resources; the folder made for it, to be removed after it, where its usual one is too long.

    Whatever Ray raises, and ConfigurationError where it has no place for its sockets.
    """
    folder = short_folder()
    if folder is not None:
        # Ray opens its folder to all: this one lies in another that is closed.
        options["_temp_dir"] = str(folder / "r")
    open_to_all = os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled"
    if not open_to_all and not any(name in os.environ for name in TOKEN_VARIABLES):
        # From the environment, which only this user can read, Ray takes it without a file.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        with _on_loopback():
            # Without an address Ray would join whatever cluster it finds, and refuse its size.
            ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, **options)
    except BaseException:
        remove(folder)
        raise
    return folder


def remove(folder: Path | None) -> None:
    """Delete the folder that `start` made, if it made one."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def short_folder() -> Path | None:
    """A new folder for Ray where sockets in its usual one would have too long a path, else None."""
    usual = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else None) or "/tmp"
    if len(os.fsencode(f"{usual}/ray{SOCKET}")) <= LONGEST:
        return None
    try:
        return Path(tempfile.mkdtemp(prefix="ray-", dir=SHORT))
    except OSError as error:
        raise ConfigurationError(
            f"{usual} is too long for Ray's sockets, and {SHORT} refuses: {error.strerror}; "
            "set RAY_TMPDIR to a short path"
        ) from None


@contextmanager
def _on_loopback() -> Iterator[None]:
    # Ray replaces a loopback address by the machine's own, except where it is told that there are no clusters.
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
