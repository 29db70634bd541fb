"""Edits: success, identity and calls at once, local moves about the best, and one that is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.files import write_text
from fewstep.pipeline.editing.settings import EditSettings
from fewstep.pipeline.policies.edit import EditPolicy, edit_objectives
from fewstep.pipeline.problems.base import Publication, found
from fewstep.pipeline.proposers.base import Proposer
from fewstep.pipeline.proposers.evolution import ParetoEvolution
from fewstep.pipeline.proposers.options import OnRefit
from fewstep.pipeline.proposers.optuna import OptunaProposer
from fewstep.pipeline.proposers.samplers import OWN, stock_sampler
from fewstep.pipeline.reports.csv import results_csv
from fewstep.pipeline.reports.rows import FOUND, Row, row_of
from fewstep.pipeline.search import Search, Seed
from fewstep.pipeline.stages.finals import Finals
from fewstep.pipeline.stages.neighbours import LAST_ROUND, Neighbours, chosen
from fewstep.pipeline.trial import Ladder, Rung, Trial, Work
from fewstep.search_spaces.edit import PUBLISHED, EditConfig
from fewstep.search_spaces.edit.space import EditSpace
from fewstep.search_spaces.point import EditPoint, Point, edit_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.editing.asked import check_guidance, conditions_of, find_edited
from fewstep.tasks.editing.bench import SEEDS
from fewstep.tasks.editing.identity import SURROUNDINGS
from fewstep.tasks.editing.judge import check_named
from fewstep.tasks.editing.measures import balance
from fewstep.tasks.editing.metric import REPORT, SEARCH
from fewstep.tasks.editing.path import segment, towards_noise
from fewstep.tasks.editing.subject import TRAIN
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.work import Subject

OBJECTIVES = 3
STOCK_STRENGTHS = (2.0, 4.0, 6.0)
FAST = ("dpm-solver-2m/uniform-t@10", "dpmpp-2m/uniform-t@10")
# (strength, C): a small C brings the normal towards the difference of the sides' means.
FAST_EDITS = ((3.0, 1.0), (5.0, 1.0), (3.0, 1e-3))


@dataclass(frozen=True)
class FrontRow:
    """One member of the front, on the finals' images."""

    trial: int
    success: float
    identity: float
    balance: float
    nfe: int
    images: int
    time: float
    latent: str
    strength_z: float
    strength_h: float
    inversion: str
    generation: str
    eta: float
    rescale: bool
    C: float
    standardise: bool
    examples: int


def way_name(way: object) -> str:
    """A way as a table shows it."""
    return way if isinstance(way, str) else str(getattr(way, "name", "") or getattr(way, "hash", ""))


def stock_edits(space: EditSpace) -> list[EditConfig]:
    """Edits to begin with: by the published calls at the base's step, then by far fewer at four steps.

    All move z, since h alone is known to do little; the sampler tries the rest.
    """
    edits: dict[str, EditConfig] = {}

    def add(**changes: object) -> None:
        config = space.config(space.values(space.base.model_copy(update={"latent": "z", "strength_h": 0.0, **changes})))
        edits.setdefault(config.hash, config)

    for strength in STOCK_STRENGTHS:
        add(strength_z=strength, inversion=PUBLISHED, generation=PUBLISHED)
    # From the second step on: at the very start there is next to no image left.
    later = sorted(space.steps)[1:] or list(space.steps)
    steps = [later[round(i * (len(later) - 1) / 4)] for i in range(4)]
    for strength, C in FAST_EDITS:
        for step in steps:
            boundary = space.base.boundary.model_copy(update={"C": C})
            add(step=step, strength_z=strength, inversion=FAST[0], generation=FAST[1], boundary=boundary)
    return list(edits.values())


class EditProblem:
    """See the module's docstring."""

    teacher: SolverSchedule | None = None
    objectives = staticmethod(edit_objectives)

    def __init__(self, settings: EditSettings) -> None:
        self.settings = settings
        self.files: ModelFiles = find_edited(settings.subject)
        s = settings
        self.space = EditSpace(s.steps, s.subject.examples, s.base, s.schedules, s.kept)

    def check_new(self) -> None:
        """ConfigurationError for what no search may begin with; one that began goes on."""
        check_named(self.settings.subject)
        screen, final = self.settings.screen_images, self.settings.final_images
        if final <= screen:
            # As many, and an edit's finals would be its screen, which is stored but once.
            raise ConfigurationError(
                f"final_images {final}: give more than the {screen} of the screen (--screen-images)"
            )
        if self.files.unet_config.get("mid_block_type", "") is None and "latent" not in self.settings.kept:
            raise ConfigurationError(
                f"the network of {self.files.name} has no middle block, so only z can be moved: give --keep latent"
            )
        for schedule in self.settings.schedules:
            check_guidance(schedule, self.subject.conditions)

    @cached_property
    def subject(self) -> Subject:
        """What is evaluated."""
        edited = self.settings.subject
        asked = conditions_of(self.files, edited.prompt, edited.guidance)
        return Subject(edited.model, edited.features, conditions=asked, edits=edited.model_dump_json())

    @cached_property
    def ladder(self) -> Ladder:
        """Screen and finals on the search's originals, the report on its own; nothing in between."""
        s, (search, report) = self.settings, (self.seeds["search"], self.seeds["report"])
        screen = Rung("screen", "edit", s.screen_images, search, {"part": SEARCH})
        finals = Rung("finals", "edit", s.final_images, search, {"part": SEARCH})
        return Ladder(screen, screen, finals, Rung("report", "edit", s.report_images, report, {"part": REPORT}))

    @property
    def seeds(self) -> dict[str, int]:
        """Those of the noise of each part."""
        seed = self.settings.subject.seed
        return {SEARCH: seed + SEEDS[SEARCH], REPORT: seed + SEEDS[REPORT]}

    def ways(self, point: Point) -> tuple[SolverSchedule, SolverSchedule]:
        """The ways of an edit to its step and back as schedules; ScheduleError where one does not fit the model."""
        edit = edit_of(point)
        assert edit is not None
        noise = self.files.noise
        there = towards_noise(segment(edit.inversion, noise, edit.step), noise)
        return there, segment(edit.generation, noise, edit.step)

    def calls(self, point: Point) -> int:
        """Denoiser calls of both ways."""
        return sum(way.nfe for way in self.ways(point))

    def check(self, point: Point) -> None:
        """See `calls`."""
        self.calls(point)

    def search(self, on_refit: OnRefit | None = None) -> Search:
        """A new search."""
        s = self.settings
        seeds: list[Seed] = [("seed", EditPoint(edit=edit)) for edit in stock_edits(self.space)]
        policy = EditPolicy(self.ladder, seeds, self.calls, s.finalists, s.most_calls)
        rounds = [Neighbours(self.space, policy, round_) for round_ in range(1, LAST_ROUND + 1)]
        proposer = self._proposer(policy, on_refit)
        return Search((0,), s.budget, self.ladder, proposer, policy, [Finals(), *rounds])

    def _proposer(self, policy: EditPolicy, on_refit: OnRefit | None) -> Proposer:
        s = self.settings
        if s.sampler in OWN:
            ranked_by = s.surrogate if s.sampler == "s3" else "none"
            return ParetoEvolution(
                self.space, s.seed, self.check, policy.standing, policy.screened, ranked_by, on_refit
            )
        sampler = stock_sampler(s.sampler, s.seed, OBJECTIVES, self.space.flat, s.population)
        screen = self.ladder.screen.name
        return OptunaProposer(self.space, sampler, s.sampler, s.seed, self.check, [screen], OBJECTIVES, False)

    # -- report ---------------------------------------------------------------------------------------

    @staticmethod
    def chosen(search: Search, most_calls: int | None = None) -> Trial | None:
        """What was found, see `stages/neighbours.py`."""
        assert isinstance(search.policy, EditPolicy)
        return chosen(search, search.policy, most_calls)

    def report_work(self, search: Search) -> list[Work]:
        """The choice, on the report's originals."""
        best = self.chosen(search)
        return [] if best is None else [(found(best.candidate), search.ladder.report)]

    def report_rows(self, search: Search, records: Sequence[EvaluationRecord]) -> list[Row]:
        """The choice, by its imbalance."""
        best = self.chosen(search)
        name = search.ladder.report.name
        rows = [r for r in records if best is not None and (r.candidate, r.rung) == (best.candidate.hash, name)]
        return [row_of(r, FOUND, r.candidate) for r in rows if r.value is not None]

    @property
    def notes(self) -> dict[str, str]:
        """What the value means, and what it was measured by."""
        subject = self.settings.subject
        sides = [side for side in (subject.judge_positive, subject.judge_negative) if side]
        return {
            "value": "imbalance, 1 - the harmonic mean of success and identity",
            "success": f"by judge {subject.judge or TRAIN}" + (f" ({' against '.join(sides)})" if sides else ""),
            "identity": f"by {subject.identity or SURROUNDINGS}",
        }

    def front_rows(self, search: Search) -> list[FrontRow]:
        """The front of the finals, fewest calls first."""
        rows, finals = [], search.ladder.finals
        assert isinstance(search.policy, EditPolicy)
        for trial in search.policy.front(search, finals):
            figures, c = trial.records[finals.name].metrics, edit_of(trial.candidate.point)
            assert c is not None
            rows.append(
                FrontRow(
                    trial.number,
                    figures["success"],
                    figures["identity"],
                    balance(figures["success"], figures["identity"]),
                    int(figures["nfe"]),
                    int(figures["images"]),
                    self.files.noise.time(c.step),
                    c.latent,
                    c.strength_z,
                    c.strength_h,
                    way_name(c.inversion),
                    way_name(c.generation),
                    c.eta,
                    c.rescale,
                    c.boundary.C,
                    c.boundary.standardise,
                    c.boundary.images,
                )
            )
        return sorted(rows, key=lambda r: (r.nfe, -r.balance))

    def publish(self, search: Search, rows: Sequence[Row], to: Publication) -> dict[str, Path]:
        """The front as CSV, and what was chosen as JSON; ConfigurationError where nothing was found."""
        best = self.chosen(search)
        if best is None:
            bound = f" of at most {self.settings.most_calls} calls" if self.settings.most_calls else ""
            raise ConfigurationError(f"the search found no edit{bound}: give it a larger --budget")
        edit = edit_of(best.candidate.point)
        assert edit is not None
        finals = [r for t in search.trials.values() if (r := t.records.get(search.ladder.finals.name))]
        text = results_csv(self.front_rows(search), to.command, self.seeds, self.notes, finals)
        return {
            "front.csv": write_text(to.root / "front.csv", text),
            "edit.json": write_text(to.root / "edit.json", edit.model_dump_json(indent=2) + "\n"),
        }
