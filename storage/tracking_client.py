"""A connection to MLflow that fails fast, stays silent and leaves no trace in this process."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.errors import FewstepError, LeaseError, TrackingError
from fewstep.storage.lease import Lease
from fewstep.storage.parts import one_line

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_SQLITE = "sqlite:///"
_LOGGERS = ("mlflow", "alembic")
_LONGEST = 300


def default_tracking_uri(root: str | Path) -> str:
    """The address of the embedded SQLite store `mlflow.db` in the directory `root`."""
    return f"{_SQLITE}{Path(root).absolute() / 'mlflow.db'}"


def artifact_location(tracking_uri: str) -> str | None:
    """Where an embedded store keeps artifacts: beside its database; None leaves it to the server."""
    database = _database(tracking_uri)
    return (database.parent / "mlartifacts").as_uri() if database else None


@contextmanager
def connect(tracking_uri: str, timeout: float) -> Iterator["MlflowClient"]:
    """A client whose requests wait at most `timeout` seconds and are tried twice.

    Whatever goes wrong within the block at the server, the database or on the way becomes one
    TrackingError of one line.
    """
    try:
        with ExitStack() as stack:
            stack.enter_context(_environment(timeout))
            database = _database(tracking_uri)
            if database is not None:
                # Two first starts at once would both create the tables, and one of them fail.
                stack.enter_context(Lease(database.parent, "mlflow.lock", wait=timeout))
            from mlflow.tracking import MlflowClient

            stack.enter_context(_quiet())
            yield MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    except LeaseError as error:
        raise TrackingError(f"tracking store {tracking_uri} is busy: {error}") from error
    except FewstepError:
        raise
    except Exception as error:
        # MLflow lets through whatever requests, SQLAlchemy, urllib3 or the system raise.
        reason = one_line(error)
        reason = reason if len(reason) <= _LONGEST else reason[:_LONGEST] + " ..."
        raise TrackingError(
            f"tracking at {tracking_uri} failed: {reason}; nothing is lost, check the address and sync again"
        ) from error


def _database(tracking_uri: str) -> Path | None:
    path = tracking_uri.removeprefix(_SQLITE)
    return Path(path).absolute() if path != tracking_uri and path not in ("", ":memory:") else None


@contextmanager
def _environment(timeout: float) -> Iterator[None]:
    seconds = str(max(1, round(timeout)))
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": seconds,
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": seconds,
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
