"""How an experiment of studies opens in MLflow's pages: as training runs, with a saved view that compares studies.

MLflow keeps both as tags of the experiment. A saved view is one tag, whose name ends its address, see `VIEW_ADDRESS`.
"""

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fewstep.storage.tracking_plan import KIND_TAG, MODEL_TAG, NFE_TAG, SPACE_TAG

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

EXPERIMENT_KIND = "mlflow.experimentKind"
TRAINING = "custom_model_development"
VIEW, VIEW_NAME = "fewstep-studies", "Studies side by side"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
VIEW_ADDRESS = f"/#/experiments/{{experiment}}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"

MOST_COLUMNS = 40
# Pixels: of the narrowest column, and what a head takes beside its name and for each sign of it.
_NARROW, _EDGES, _A_SIGN = 110, 36, 6
_FIRST = [f"tags.`{name}`" for name in (MODEL_TAG, SPACE_TAG, NFE_TAG)]
_FACETS = {
    "searchFilter": f"tags.`{KIND_TAG}` = 'study'",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "modelVersionFilter": "All Runs",
    "datasetsFilter": [],
}


def show_as_studies(client: "MlflowClient", experiment: "Experiment", metrics: Iterable[str], now: int) -> None:
    """Let the experiment open as training runs, and its view have a column for each of `metrics`; `now` in ms.

    A kind that somebody chose stays, and so do the columns of other studies. What is no view of MLflow's is replaced.
    """
    tags = experiment.tags
    if EXPERIMENT_KIND not in tags:
        client.set_experiment_tag(experiment.experiment_id, EXPERIMENT_KIND, TRAINING)
    made, state = _stored(tags.get(VIEW_TAG, ""))
    before = state.get("selectedColumns", [])
    wanted = [f"metrics.`{name}`" for name in metrics]
    if not before or not set(wanted) <= set(before):
        columns = sorted({*_FIRST, *before, *wanted}, key=_place)[:MOST_COLUMNS]
        widths = {name: max(_NARROW, _EDGES + _A_SIGN * len(name.partition("`")[2])) for name in columns}
        state = {**_FACETS, **state, "selectedColumns": columns, "columnOrder": columns, "columnWidths": widths}
        view = {"name": VIEW_NAME, "createdAt": made or now, "updatedAt": now, "state": json.dumps(state)}
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, json.dumps(view))


def _place(column: str) -> tuple[bool, str, list[str | int]]:
    """What finds a study before its metrics; these by space, and numbers in them by their size."""
    space, _, rest = column.removesuffix("`").partition("/")
    return column.startswith("metrics."), space, [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", rest)]


def _stored(text: str) -> tuple[int, dict[str, Any]]:
    """When a view was made, and what it shows; (0, {}) where there is none that can be read."""
    try:
        view = json.loads(text)
        state, made = json.loads(view["state"]), int(view["createdAt"])
        known = isinstance(state["selectedColumns"], list)
    except (ValueError, KeyError, TypeError):
        return 0, {}
    return (made, state) if known else (0, {})
