"""What the table of edits needs of a search: open it or go on, what it found, and figures of any edit on its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.campaign import Campaign
from fewstep.pipeline.editing.boundaries import cache_folder, step_grid
from fewstep.pipeline.editing.settings import EditSettings, study_name
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.problems.edits import EditProblem
from fewstep.pipeline.search import Search
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.edit import PUBLISHED, BoundaryConfig, EditConfig
from fewstep.search_spaces.point import EditPoint, edit_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.editing.bench import Bench, make_bench
from fewstep.tasks.editing.measures import balance
from fewstep.tasks.editing.metric import REPORT
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.files import find_model


@dataclass(frozen=True, eq=False)
class EditSearch:
    """A search of edits at its end. `bench` holds its images, boundaries and judge."""

    study: Study
    problem: EditProblem
    state: Search
    execution: ExecutionSettings
    on_record: OnRecord
    found: EditConfig
    bench: Bench

    @classmethod
    def run(
        cls,
        root: Path,
        subject: EditSubject,
        steps: int,
        schedules: Sequence[SolverSchedule],
        command: str,
        execution: ExecutionSettings,
        on_record: OnRecord,
        **asked: object,
    ) -> EditSearch:
        """Search or go on; ConfigurationError where the folder's search was made with other settings."""
        noise = find_model(subject.model).noise
        grid = step_grid(noise, steps)
        # The published step is the one in the middle of the model's time.
        middle = 0.5 * (noise.time(noise.lambda_start) + noise.time(noise.lambda_end))
        base = EditConfig.build(
            step=min(grid, key=lambda s: abs(noise.time(s) - middle)), boundary=BoundaryConfig(images=subject.examples)
        )
        settings = EditSettings.build(
            study=study_name(subject),
            subject=subject,
            steps=grid,
            base=base,
            schedules=tuple(schedules),
            **asked,
        )
        cache = cache_folder()
        study = Study(root, settings, cache)
        # How many images the report has decides about nothing before it.
        free = {"report_images": settings.report_images}
        if study.exists and Study.load(root, cache).settings.model_copy(update=free) != settings:
            raise ConfigurationError(
                f"{root} holds a search that was made with other settings: give those, or choose another --out"
            )
        study.run(execution, command, on_record)
        state, problem = study.state(), study.problem
        assert isinstance(problem, EditProblem)
        chosen = problem.chosen(state)
        found = edit_of(chosen.candidate.point) if chosen is not None else None
        assert found is not None
        return cls(study, problem, state, execution, on_record, found, make_bench(subject, cache, execution.device))

    def measured(self, configs: Sequence[tuple[str, EditConfig]], images: int) -> list[EvaluationRecord]:
        """Records of named edits on the report's first images; EvaluationError where one cannot be made."""
        rung = Rung(REPORT, "edit", images, self.problem.seeds[REPORT], {"part": REPORT})
        campaign = Campaign(
            self.problem.subject,
            self.study.root,
            self.execution,
            self.study.settings.study,
            cache=str(self.study.cache),
            on_record=self.on_record,
        )
        records = campaign.run([(EditPoint(edit=config), name, rung) for name, config in configs])
        for record in records:
            if record.status != "complete":
                raise EvaluationError(record.error)
        return records

    @property
    def published(self) -> EditConfig | None:
        """The best balanced screened edit at the base's step by the published calls; None where none was screened."""
        found = []
        for trial in self.state.trials.values():
            config, record = edit_of(trial.candidate.point), trial.records.get(self.state.ladder.screen.name)
            if config is None or record is None or record.status != "complete":
                continue
            stock = (config.inversion, config.generation) == (PUBLISHED, PUBLISHED) and trial.candidate.origin == "seed"
            if stock and config.boundary == self.problem.settings.base.boundary:
                found.append((balance(record.metrics["success"], record.metrics["identity"]), config))
        return max(found, key=lambda pair: pair[0])[1] if found else None
