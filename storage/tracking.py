"""Projects a study into MLflow: one run for the study, a nested run for each member of its front and its peers.

MLflow is for people to browse; the tables are the truth. A sync may therefore be cut off, repeated or
left out: the next one finds the runs by the study's id and completes them, and duplicates nothing.
"""

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fewstep.errors import TrackingError
from fewstep.files import PATIENCE
from fewstep.storage.masking import masked_argument, told_text, without_home, without_secrets
from fewstep.storage.names import wrong_path
from fewstep.storage.store import Store
from fewstep.storage.tracking_client import (
    artifact_location,
    connect,
    default_tracking_uri,
    experiment_in,
    follow,
    is_locked,
)
from fewstep.storage.tracking_plan import CANDIDATE_TAG, RunPlan, StudyPlan, metric_key, plan_study, with_figures
from fewstep.storage.tracking_runs import PARAM_LENGTH, PARENT_TAG, TAG_LENGTH, runs_of
from fewstep.storage.tracking_view import VIEW_ADDRESS, VIEW_TAG, show_as_studies

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

__all__ = ["OWN_RUN", "default_tracking_uri", "sync", "view_address", "without_secrets"]

EXPERIMENT = "fewstep"
OWN_RUN = "{own run}"
"""Stands in a description for the id of the run that it describes, which its artifacts are addressed by."""

# What nested runs were called before their names said what they are.
_OLD_NAME = re.compile(r"nfe \d+ [0-9a-f]{1,8}")
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
_log = logging.getLogger(__name__)

Files = Mapping[str, Path]


def sync(
    store: Store,
    study: str,
    tracking_uri: str,
    artifacts: Files | None = None,
    candidate_artifacts: Mapping[str, Files] | None = None,
    rung: str = "frechet",
    experiment: str = EXPERIMENT,
    timeout: float = 5.0,
    front_rung: str | None = None,
    figures: Mapping[str, float] | None = None,
    description: str = "",
    columns: Sequence[str] = (),
) -> str:
    """Bring MLflow's runs of one study up to date with the tables; returns the study's run id.

    The curve is of `rung`, the nested runs are the front of `front_rung`, by default the same.
    `figures` are further metrics of the study's run, `columns` those of them that the experiment's view of all studies
    shows. `description` is Markdown; for OWN_RUN in it the study's run id is put. `artifacts` are files by the name
    (slashes make folders) to show them under in the study's run,
    `candidate_artifacts` the same for members of the front, by candidate hash. Requests wait at most
    `timeout` seconds and are tried twice. Parameters keep their first value, as MLflow demands; the
    artifact settings.json is always the latest. Raises StorageError for an unknown study or an
    unreadable store, TrackingError when a file is missing or the server refuses or does not answer.
    """
    shown: dict[str | None, Files] = {None: artifacts or {}}
    shown.update(candidate_artifacts or {})
    _check_files([entry for files in shown.values() for entry in files.items()])
    plan = with_figures(plan_study(store, study, rung, front_rung), figures or {}, description)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return _bring_up(plan, tracking_uri, shown, experiment, timeout, columns)
        except TrackingError as error:
            if not is_locked(error) or time.monotonic() > deadline:
                raise
            _log.warning("%s is locked by another program, trying again", masked_argument(tracking_uri))


def view_address(tracking_uri: str, experiment: str = EXPERIMENT) -> str:
    """Where on its server an embedded store's studies are side by side; of another all experiments."""
    found = experiment_in(tracking_uri, experiment, VIEW_TAG)
    return VIEW_ADDRESS.format(experiment=found) if found else "/#/experiments?workflowType=machine_learning"


def _bring_up(
    plan: StudyPlan,
    tracking_uri: str,
    shown: Mapping[str | None, Files],
    experiment: str,
    timeout: float,
    columns: Sequence[str],
) -> str:
    nested = {**plan.members, **plan.peers}
    with connect(tracking_uri, timeout) as client:
        found = _experiment(client, experiment, tracking_uri)
        runs = _StudyRuns(client, found.experiment_id, plan)
        parent = runs.bring_up(None, plan.parent, {**plan.parent.labels, **plan.parent.tags}, shown[None])
        for candidate, member in nested.items():
            tags = {**member.labels, **member.tags, PARENT_TAG: parent}
            runs.bring_up(candidate, member, tags, shown.get(candidate, {}))
        runs.retire_all_but({None, *nested})
        show_as_studies(client, found, map(metric_key, columns), plan.parent.end)
    return parent


def _check_files(files: Sequence[tuple[str, Path]]) -> None:
    for name, path in files:
        if wrong := wrong_path(name):
            raise TrackingError(f"{name!r} cannot be an artifact's name: {wrong}")
        if not Path(path).is_file():
            raise TrackingError(f"there is no file {path} to log as an artifact: write it first or leave it out")


def _experiment(client: "MlflowClient", name: str, tracking_uri: str) -> "Experiment":
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.get_experiment(client.create_experiment(name, artifact_location(tracking_uri)))
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r} at {masked_argument(tracking_uri)} is deleted: restore it there or choose another "
            "name"
        )
    follow(tracking_uri, found.experiment_id, found.artifact_location)
    return found


class _StudyRuns:
    """The runs of one study on the server, by candidate; the study's own run under None."""

    def __init__(self, client: "MlflowClient", experiment_id: str, plan: StudyPlan) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.found: dict[str | None, Run] = {}
        for run in runs_of(client, experiment_id, plan):
            kept = self.found.setdefault(run.data.tags.get(CANDIDATE_TAG), run)
            if kept is not run and run.info.lifecycle_stage == "active":
                client.delete_run(run.info.run_id)  # two clients made it at the same moment

    def bring_up(self, candidate: str | None, plan: RunPlan, tags: Mapping[str, str], files: Files) -> str:
        """Create or complete one run; its id."""
        run = self.found.get(candidate)
        if run is None:
            told = {name: told_text(value)[:TAG_LENGTH] for name, value in tags.items()}
            run = self.client.create_run(self.experiment_id, plan.start, told, plan.name)
        elif run.info.lifecycle_stage != "active":
            self.client.restore_run(run.info.run_id)
        run_id = str(run.info.run_id)
        if _OLD_NAME.fullmatch(run.info.run_name or ""):
            self.client.update_run(run_id, name=plan.name)
        self._log(run, plan, {name: value.replace(OWN_RUN, run_id) for name, value in tags.items()})
        for name, text in plan.texts.items():
            self.client.log_text(run_id, without_home(text), name)
        for name, path in files.items():
            self._log_file(run_id, PurePosixPath(name), Path(path))
        if run.info.status != "FINISHED" or run.info.end_time != plan.end:
            self.client.set_terminated(run_id, "FINISHED", plan.end)
        return run_id

    def retire_all_but(self, members: set[str | None]) -> None:
        """Delete, recoverably, the runs of candidates that a better one pushed off the front."""
        for candidate, run in self.found.items():
            if candidate not in members and run.info.lifecycle_stage == "active":
                if run.info.status != "FINISHED":
                    self.client.set_terminated(run.info.run_id, "FINISHED")
                self.client.delete_run(run.info.run_id)

    def _log(self, run: "Run", plan: RunPlan, tags: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run_id, tags = run.info.run_id, {name: told_text(value)[:TAG_LENGTH] for name, value in tags.items()}
        stale = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
        if stale:
            self.client.log_batch(run_id, tags=stale, synchronous=True)
        # An empty value is no parameter, and a changed one would be refused.
        new = [
            Param(name, told_text(value)[:PARAM_LENGTH])
            for name, value in plan.params.items()
            if value and name not in run.data.params
        ]
        for start in range(0, len(new), _PARAMS_A_BATCH):
            self.client.log_batch(run_id, params=new[start : start + _PARAMS_A_BATCH], synchronous=True)
        metrics = [Metric(point.metric, point.value, point.time, point.step) for point in plan.points]
        for start in range(0, len(metrics), _METRICS_A_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_BATCH], synchronous=True)

    def _log_file(self, run_id: str, name: PurePosixPath, path: Path) -> None:
        folder = None if str(name.parent) == "." else str(name.parent)
        if path.name == name.name:
            self.client.log_artifact(run_id, str(path), folder)
            return
        with tempfile.TemporaryDirectory() as scratch:
            renamed = shutil.copy(path, Path(scratch) / name.name)
            self.client.log_artifact(run_id, str(renamed), folder)
