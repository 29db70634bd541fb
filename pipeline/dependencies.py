"""What the values of a study depend on, by content: whoever adds to a folder must have what was there before.

A value is ranked beside others and learned from, so that one of other weights, or against another reference, would make
all of them wrong. Settings name what they depend on; here is what was found under the names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from fewstep.errors import ConfigurationError, DamagedFileError
from fewstep.pipeline.evaluator import Evaluator
from fewstep.storage.records import StudyRecord
from fewstep.storage.store import Store
from fewstep.tasks.data import DATASETS, load_dataset
from fewstep.tasks.editing.judge import OWN, judge_kind
from fewstep.tasks.editing.metric import EditMetric
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.metric import FeatureMetric, Metric, SampleMetric
from fewstep.tasks.models.judge import find_judge
from fewstep.tasks.quantization.storage import find_quantized

# What a metric's addresses hold besides content.
_NAMES = ("metric", "kind")


def dependencies(evaluator: Evaluator, metrics: Iterable[str]) -> dict[str, str]:
    """Content addresses by name and by what was given for it; what a metric cannot use is refused by the metric."""
    subject, files = evaluator.subject, replace(evaluator.files, quantized=None)
    model = f"model {subject.model}"
    found = {model: files.hash, f"scheduler of {model}": _digest(files.scheduler / "scheduler_config.json")}
    if subject.quantized:
        found[f"quantized network {subject.quantized}"] = find_quantized(Path(subject.quantized)).hash
    if evaluator.statistics_hash:
        found[f"statistics {subject.statistics}"] = evaluator.statistics_hash
    if guide := subject.conditions.classifier:
        found[f"guiding classifier {guide}"] = _digest(Path(guide))
    if files.condition is not None:
        found[f"shown data set {files.condition.dataset}"] = _data(files.condition.dataset)
    for name in dict.fromkeys(metrics):
        found |= _of_metric(evaluator.metric(name))
    return found | (_of_edits(evaluator) if subject.edits else {})


def _of_metric(metric: Metric) -> dict[str, str]:
    """What a metric says that its values depend on."""
    subject = metric.subject
    given = f"model {subject.model}, features {subject.features}"
    if metric.argument and not isinstance(metric, FeatureMetric):
        given += f", {metric.argument}"
    names = {"judge": f"judge {subject.judge}"}
    if isinstance(metric, FeatureMetric):
        names["features"] = f"features {subject.features}" + (
            f" of model {subject.model}" if subject.features == "auto" else ""
        )
        names["reference"] = _reference(subject.model, subject.features, subject.reference)
        if isinstance(metric, SampleMetric):
            names["reference"] = f"images of {names['reference']}"
    parts = metric.identity | metric.standard
    return {
        names.get(name, f"{name} of {metric.figure} ({given}, reference {subject.reference})"): str(value)
        for name, value in parts.items()
        if name not in _NAMES
    }


def _reference(model: str, features: str, reference: str) -> str:
    return f"reference {reference} (model {model}, features {features})"


def _of_edits(evaluator: Evaluator) -> dict[str, str]:
    """The images that are edited, what judges them, and the features that their identity is measured in."""
    edits = EditSubject.model_validate_json(evaluator.subject.edits)
    features = f"features {edits.features}" + (f" of model {edits.model}" if edits.features == "auto" else "")
    found = {features: make_extractor(edits.features, evaluator.files, "cpu").hash}
    if edits.data:
        found[f"data {edits.data}"] = _data(edits.data)
    metric = evaluator.metric("edit")
    assert isinstance(metric, EditMetric)
    measured_by = dict(metric.measured_by)
    if judge_kind(edits, evaluator.files) == OWN:
        measured_by["judge"] = _digest(find_judge(edits.judge.removeprefix(f"{OWN}:")))
    given = {"judge": edits.judge, "identity": edits.identity, "text model": edits.text_model}
    return found | {f"{name} {given[name]}": value for name, value in measured_by.items()}


def _data(name: str) -> str:
    """A data set's content, or a folder's; the loader refuses what is neither."""
    if name not in DATASETS:
        return _digest(Path(name))
    digest = hashlib.sha256()
    for split in ("train", "test"):
        data = load_dataset(name, split)
        digest.update(data.images.tobytes() + data.labels.tobytes())
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    """Of a file's bytes, or of all that are in a folder, hidden ones left out; empty where there is nothing."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    digest = hashlib.sha256()
    for file in files:
        within = file.relative_to(path)
        if any(part.startswith(".") for part in within.parts):
            continue
        digest.update(within.as_posix().encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16] if files else ""


# -- comparing ------------------------------------------------------------------------------------------


def check_folder(store: Store, found: Mapping[str, str]) -> None:
    """ConfigurationError where the folder's studies depend on other content of the same name.

    DamagedFileError where a file that says what they are is damaged.
    """
    check_studies(store)
    for record in store.studies.records():
        past = record.hashes or _stored(store, record)
        changed = [
            f"{name} was {past[name][:16]} and is now {now[:16]}"
            for name, now in found.items()
            if past.get(name, now) != now
        ]
        if changed:
            raise ConfigurationError(
                f"{store.root} holds values of study {record.study!r} that were made of something else: "
                f"{'; '.join(changed)}: put back what was there, or choose another --out"
            )


def check_values(store: Store, study: str, model_hash: str) -> None:
    """ConfigurationError where a search's values are of another network than its own, whatever its row says."""
    models = store.evaluations.read(["model_hash"], {"study": study}).column("model_hash").unique().to_pylist()
    others = sorted(set(models) - {model_hash})
    if others:
        raise ConfigurationError(
            f"{store.root} holds values of study {study!r} that were made by another network: model was "
            f"{', '.join(others)} and is now {model_hash}: put back what was there, or choose another --out"
        )


def check_studies(store: Store) -> None:
    """DamagedFileError where a file that says which study a folder holds is damaged."""
    if damaged := store.studies.damaged():
        path, reason = damaged[0]
        raise DamagedFileError(
            f"{path}, which says what study the folder holds, is damaged ({_short(reason)}): restore it from a copy, "
            "choose another --out, or delete it and give the very settings of the study again, without --resume"
        )


def _short(reason: str) -> str:
    return reason.partition(" is damaged: ")[2].partition(";")[0] or reason


def _stored(store: Store, record: StudyRecord) -> dict[str, str]:
    """What the row and the records of a study say that was written without hashes."""
    try:
        settings = json.loads(record.settings_json)
    except ValueError:
        return {}
    if not isinstance(settings, dict):
        return {}
    quantized = settings.get("quantized") or ""
    found = {} if quantized else {f"model {record.model}": record.model_hash}
    values = store.evaluations.read(["reference"], {"study": record.study})
    references = set(values.column("reference").to_pylist()) - {""}
    if len(references) == 1 and "subject" not in settings:
        given = settings.get("features", "auto"), settings.get("reference", "auto")
        found[_reference(record.model, *given)] = references.pop()
    return found
