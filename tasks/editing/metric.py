"""An edit's success and identity as a metric, measured by the bench of its subject."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.point import Point, edit_of, parse_point
from fewstep.tasks.editing.attributes import Part
from fewstep.tasks.editing.bench import Bench, make_bench
from fewstep.tasks.editing.identity import make_identity
from fewstep.tasks.editing.judge import OWN, check_judge, find_scores, identity_of, judge_kind, with_judge
from fewstep.tasks.editing.measures import balance
from fewstep.tasks.editing.prompted import text_files
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.metrics.metric import Metric, Score
from fewstep.tasks.work import Measured, Task
from fewstep.tasks.work import Part as ImagesPart

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

SEARCH: Final = "search"
REPORT: Final = "report"


class EditMetric(Metric):
    """The imbalance, 1 - the harmonic mean of success and identity: what is chosen by, where one figure decides.

    The argument `part` says whose originals are edited: those of the search, or those of the report.
    """

    figure: ClassVar[str] = "imbalance"
    standalone: ClassVar[bool] = False
    interval: ClassVar[str] = "95%; success: Wilson, identity: normal over the images"

    @cached_property
    def _edited(self) -> EditSubject:
        if not self.subject.edits:
            raise ConfigurationError("this worker was not set up for edits: it has no subject of them")
        return EditSubject.model_validate_json(self.subject.edits)

    def check(self) -> None:
        """There is something to edit, a judge that knows the attribute, and a measure of identity."""
        check_judge(self._edited, self.files)
        assert self.measured_by is not None

    @cached_property
    def measured_by(self) -> dict[str, str]:
        """Content addresses of what a subject names: text model, judge and measure of identity, where there are any.

        Not of the classifiers that judged before other judges could, whose folder's bytes a study knows.
        """
        edited, found = self._edited, dict[str, str]()
        if edited.text_model:
            found["text model"] = text_files(edited).hash
        if (kind := judge_kind(edited, self.files)) and kind != OWN:
            found["judge"] = identity_of(find_scores(edited, self.files, self.setting.device))
        if (measure := make_identity(edited, self.files, self.setting.device)) is not None:
            found["identity"] = hashlib.sha256(measure.hash.encode()).hexdigest()[:16]
        return found

    def prepare(self, worker: Worker) -> None:
        """Make the bench."""
        self._bench_on(worker)

    def _bench_on(self, worker: Worker) -> Bench:
        if not hasattr(self, "_bench"):
            cache = Path(worker.settings.cache) if worker.settings.cache else None
            self._bench = make_bench(with_judge(self._edited), cache, worker.device, copy.copy(worker.exact))
        return self._bench

    def measure(self, worker: Worker, task: Task) -> Measured:
        """All figures of the edits of a part's first `count` originals.

        Calls are what the edits take from nothing, whatever of them lies in a cache.
        """
        edit = edit_of(parse_point(task.point))
        if edit is None:
            raise ConfigurationError(f"this worker was set up for edits, it cannot measure {task.point[:40]!r}")
        part: Part = SEARCH if task.arguments["part"] == SEARCH else REPORT
        figures = self._bench_on(worker).evaluate(part, task.count, edit).metrics()
        known = {name: value for name, value in figures.items() if value == value}
        return Measured(figures=known, calls=round(figures["nfe"] * figures["images"]))

    def score(self, parts: Sequence[ImagesPart], figures: Mapping[str, float]) -> Score:
        """The imbalance, with everything that was measured."""
        return Score(1 - balance(figures["success"], figures["identity"]), figures=figures)

    def address(self, point: Point, images: int, seed: int, arguments: Mapping[str, str]) -> dict[str, object]:
        """The subject decides about noise and features; what it names counts by its content."""
        return {
            "model": self.files.hash,
            "subject": self._edited.model_dump_json(),
            "edit": point.hash,
            "images": images,
            "part": arguments["part"],
            **self.measured_by,
        }

    @property
    def features(self) -> str:
        """The name that the subject gives its features by."""
        return self._edited.features

    @property
    def reference(self) -> str:
        """The attribute."""
        return self._edited.attribute
