"""A connection to MLflow that fails fast, stays silent and leaves no trace in this process."""

import glob
import logging
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import FewstepError, LeaseError, TrackingError
from fewstep.storage.lease import Lease
from fewstep.storage.masking import masked_argument, without_secrets
from fewstep.storage.parts import one_line

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_SQLITE = "sqlite:///"
_LOGGERS = ("mlflow", "alembic")
_LONGEST = 300
_ARTIFACTS = "mlartifacts"


def default_tracking_uri(root: str | Path) -> str:
    """The address of the embedded SQLite store `mlflow.db` in the directory `root`."""
    return f"{_SQLITE}{Path(root).absolute() / 'mlflow.db'}"


def artifact_location(tracking_uri: str) -> str | None:
    """Where an embedded store keeps artifacts: beside its database; None leaves it to the server."""
    database = _database(tracking_uri)
    return (database.parent / _ARTIFACTS).as_uri() if database else None


def experiment_in(tracking_uri: str, name: str, tag: str) -> str:
    """The id of an experiment of an embedded store that has a tag; empty where there is none, or a server has it."""
    database = _database(tracking_uri)
    if database is None or not database.is_file():
        return ""
    try:
        with closing(sqlite3.connect(database)) as connection:
            row = connection.execute(
                "SELECT experiment_id FROM experiments JOIN experiment_tags USING (experiment_id) "
                "WHERE name = ? AND key = ?",
                (name, tag),
            ).fetchone()
    except sqlite3.DatabaseError:
        return ""
    return str(row[0]) if row else ""


def follow(tracking_uri: str, experiment_id: str, location: str) -> None:
    """Let an experiment keep its artifacts beside its embedded database, wherever the folder was moved.

    `location` is where the experiment has them; one that somebody chose is left alone.
    """
    beside, database = artifact_location(tracking_uri), _database(tracking_uri)
    if beside is None or database is None or location == beside or not location.endswith(f"/{_ARTIFACTS}"):
        return
    # MLflow writes an absolute address into every run, and has no call that changes it.
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (beside, int(experiment_id))
        )
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            (beside, len(location) + 1, int(experiment_id), len(location) + 1, f"{location}/"),
        )
    from mlflow.tracking._tracking_service import utils

    # Addresses by run, as this process saw them before.
    getattr(utils, "_artifact_repos_cache", {}).clear()


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

            # Only now: MLflow sets its loggers up when it is imported.
            stack.enter_context(_quiet())
            if database is not None and not complete(database):
                _create(database)
            yield MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    except LeaseError as error:
        raise TrackingError(f"tracking store {masked_argument(tracking_uri)} is busy: {error}") from error
    except FewstepError:
        raise
    except Exception as error:
        # MLflow lets through whatever requests, SQLAlchemy, urllib3 or the system raise.
        reason = without_secrets(one_line(error), tracking_uri)
        reason = reason if len(reason) <= _LONGEST else reason[:_LONGEST] + " ..."
        raise TrackingError(
            f"tracking at {masked_argument(tracking_uri)} failed: {reason}; nothing is lost, check the address and "
            "sync again"
        ) from error


def is_locked(error: TrackingError) -> bool:
    """Whether it is that somebody else held the database longer than MLflow waits, which may be tried again."""
    return "database is locked" in f"{error} {error.__cause__}"


def _database(tracking_uri: str) -> Path | None:
    path = tracking_uri.removeprefix(_SQLITE).partition("?")[0]
    return Path(path).absolute() if tracking_uri.startswith(_SQLITE) and path not in ("", ":memory:") else None


def complete(database: Path) -> bool:
    """Whether MLflow finished making this database, or it is something else than a database."""
    if not database.exists():
        return False
    try:
        with closing(sqlite3.connect(database)) as connection:
            # The default experiment is the last thing that MLflow makes.
            return bool(connection.execute("SELECT count(*) FROM experiments").fetchone()[0])
    except sqlite3.OperationalError as error:
        return "no such table" not in str(error)
    except sqlite3.DatabaseError:
        return True  # MLflow says what it is not


def _create(database: Path) -> None:
    """Have MLflow make its database aside, and rename it: half of one would be refused for good."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # MLflow keeps connections by name: one that failed would be taken up again.
    aside = database.with_name(f"{database.name}.{uuid.uuid4().hex[:8]}.new")
    _tidy(database)
    try:
        make: Any = SqlAlchemyStore
        store = make(f"{_SQLITE}{aside}", (database.parent / _ARTIFACTS).as_uri())
        store.engine.dispose()
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, database)
    finally:
        _tidy(database)


def _tidy(database: Path) -> None:
    # Beside what a killed process left, there may be a journal.
    for path in database.parent.glob(f"{glob.escape(database.name)}.*.new*"):
        with suppress(OSError):
            path.unlink(missing_ok=True)


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
