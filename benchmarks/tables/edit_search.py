"""What the table of edits needs of a search: open it or go on, what it found, and figures of any edit on its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.pipeline.editing import cache_folder, step_grid
from fewstep.pipeline.editing_evaluation import REPORT, balance
from fewstep.pipeline.editing_settings import EditSettings
from fewstep.pipeline.editing_state import SCREEN, EditState
from fewstep.pipeline.editing_study import EditStudy
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import OnRecord
from fewstep.search_spaces.edit import PUBLISHED, BoundaryConfig, EditConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.editing.bench import Bench, make_bench
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.files import find_model


@dataclass(frozen=True, eq=False)
class EditSearch:
    """A search of edits at its end. `bench` holds its images, boundaries and judge."""

    study: EditStudy
    state: EditState
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
        study = f"edit-{subject.attribute}"
        settings = EditSettings.build(
            study=study, subject=subject, steps=grid, base=base, schedules=tuple(schedules), **asked
        )
        cache = cache_folder()
        search = EditStudy(root, settings, cache)
        # How many images the report has decides about nothing before it.
        free = {"report_images": settings.report_images}
        if search.exists and EditStudy.load(root, cache).settings.model_copy(update=free) != settings:
            raise ConfigurationError(
                f"{root} holds a search that was made with other settings: give those, or choose another --out"
            )
        state = search.run(execution, on_record)
        search.publish(state, command)
        chosen = state.chosen()
        assert chosen is not None
        bench = make_bench(subject, cache, execution.device)
        return cls(search, state, execution, on_record, chosen.candidate.config, bench)

    def measured(self, configs: Sequence[tuple[str, EditConfig]], images: int) -> list[EvaluationRecord]:
        """Records of named edits on the report's first images."""
        rung = Rung(REPORT, "edit", images, self.study.settings.subject.seed)
        return self.study.measure(configs, rung, self.execution, self.on_record)

    @property
    def published(self) -> EditConfig | None:
        """The best balanced screened edit at the base's step by the published calls; None where none was screened."""
        found = []
        for trial in self.state.trials.values():
            config, record = trial.candidate.config, trial.records.get(SCREEN)
            stock = (config.inversion, config.generation) == (PUBLISHED, PUBLISHED) and trial.candidate.origin == "seed"
            same = config.boundary == self.state.settings.base.boundary
            if record is not None and record.status == "complete" and stock and same:
                found.append((balance(record.metrics["success"], record.metrics["identity"]), config))
        return max(found, key=lambda pair: pair[0])[1] if found else None
