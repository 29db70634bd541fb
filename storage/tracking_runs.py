"""Which runs on a tracking server are a study's: those with its id, and those it logged when there were only names."""

import logging
import re
from typing import TYPE_CHECKING, Literal

from fewstep.storage.tracking_plan import CANDIDATE_TAG, ID_TAG, STUDY_TAG, StudyPlan

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
PARAM_LENGTH, TAG_LENGTH = 6000, 8000

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 ./-]")
_log = logging.getLogger(__name__)


def runs_of(client: "MlflowClient", experiment_id: str, plan: StudyPlan) -> list["Run"]:
    """A study's runs, deleted ones too: active before deleted, then one fixed order for every client."""
    found = _tagged(client, experiment_id, ID_TAG, plan.id)
    if all(CANDIDATE_TAG in run.data.tags for run in found):
        found += _adopt(client, experiment_id, plan)
    return sorted(found, key=lambda run: (run.info.lifecycle_stage, run.info.run_id))


def _adopt(client: "MlflowClient", experiment_id: str, plan: StudyPlan) -> list["Run"]:
    """The runs of the study's name that have no id and are surely its own; they have its id from now on.

    Until there were ids, studies of one name shared their runs: what holds another's values is left as it is.
    """
    study = plan.parent.tags[STUDY_TAG]
    unclaimed = [run for run in _tagged(client, experiment_id, STUDY_TAG, study) if ID_TAG not in run.data.tags]
    whose = {run.info.run_id: _whose(client, run, plan) for run in unclaimed if CANDIDATE_TAG not in run.data.tags}
    if "several" in whose.values():
        _log.warning("the runs of study %r hold values of another study of that name too: it gets new ones", study)
    tops = [run for run in unclaimed if whose.get(run.info.run_id) == "own"]
    nested = [run for run in unclaimed if whose.get(run.data.tags.get(PARENT_TAG, "")) == "own"]
    members = [run for run in nested if _points(client, run) <= plan.values]
    # The study's run last: while it has no id, an adoption that was cut off is done again.
    for run in (*members, *tops):
        _claim(client, run, plan.id)
    return members + tops


def _whose(client: "MlflowClient", run: "Run", plan: StudyPlan) -> Literal["own", "several", "others"]:
    """Whose values a study's run holds: it began when the study did, or shows what only the study can have shown."""
    params = {name: value[:PARAM_LENGTH] for name, value in plan.parent.params.items()}
    logged = run.data.params
    if logged.get("model_hash", params.get("model_hash")) != params.get("model_hash"):
        return "others"
    points = _points(client, run)
    if run.info.start_time != plan.parent.start and not points & plan.values:
        return "others"
    return "own" if points <= plan.values and logged.items() <= params.items() else "several"


def _points(client: "MlflowClient", run: "Run") -> set[tuple[float, int]]:
    """(value, time) of everything that a run shows."""
    run_id = run.info.run_id
    return {(p.value, p.timestamp) for name in run.data.metrics for p in client.get_metric_history(run_id, name)}


def _claim(client: "MlflowClient", run: "Run", study_id: str) -> None:
    run_id, deleted = run.info.run_id, run.info.lifecycle_stage != "active"
    if deleted:
        client.restore_run(run_id)  # deleted runs take no tags
    client.set_tag(run_id, ID_TAG, study_id)
    if deleted:
        client.delete_run(run_id)


def _tagged(client: "MlflowClient", experiment_id: str, tag: str, value: str) -> list["Run"]:
    from mlflow.entities import ViewType

    # MLflow's queries escape nothing: what is not plain becomes a wildcard, and equality is seen to here.
    query = f"tags.`{tag}` LIKE '{_NOT_PLAIN.sub('_', value)}'"
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], query, run_view_type=ViewType.ALL, page_token=token)
        runs.extend(run for run in page if run.data.tags.get(tag) == value)
        token = page.token
        if not token:
            return runs
