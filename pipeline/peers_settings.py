"""What a table of peers is asked for, and what it costs at most."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator

from fewstep.pipeline.baseline import GRIDS_TO_ZERO, known_names
from fewstep.pipeline.campaign import Subject
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.settings import REPORT_SEED_OFFSET
from fewstep.search_spaces.presets import SEARCH_PRESETS
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import find_model
from fewstep.tasks.refinement.gits import POINTS, SAMPLES, WEIGHTS
from fewstep.tasks.refinement.parameters import Part
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.sampling.grids import parse_schedule

LEARNED: dict[str, tuple[tuple[Part, ...], int]] = {
    "ld3": (("times", "shifts"), 0),
    "s4s": (("times", "shifts", "outputs"), 3),
    "gas": (("times", "shifts", "points", "outputs"), 0),
}
SEARCHED = ("random", "tpe", "nsgaii", "cmaes", "evolution")
METHODS = ("presets", "gits", *LEARNED, *SEARCHED)
DEFAULT_METHODS = ("presets", "gits", *LEARNED)
# Where many compete, all are looked at on such a part of the images first.
LOOK = 4
# What searches start from, and the solvers that GITS and DEIS were published with.
SOLVERS = (*SEARCH_PRESETS, "deis-3", "ipndm-4")


class PeersSettings(BaseModel):
    """Everything that decides what a table of peers holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    features: str = "auto"
    reference: str = "auto"
    conditions: Conditions = Field(default_factory=Conditions)
    methods: tuple[str, ...] = DEFAULT_METHODS
    nfes: tuple[int, ...] = (3, 4, 5, 6, 8, 10)
    grids: tuple[str, ...] = GRIDS_TO_ZERO
    screen_images: PositiveInt = 2000
    report_images: PositiveInt = 10_000
    report_best: NonNegativeInt = Field(
        0, description="how many of each NFE see all images of the report, the others a quarter; 0: all"
    )
    teacher: str = "unipc-2-bh2/karras-zero@64"
    plan: RefinePlan = Field(default_factory=RefinePlan)
    budget: PositiveInt = Field(100_000, description="denoiser calls of each search at each NFE")
    found: tuple[str, ...] = Field((), description="schedules (JSON) to be judged beside the peers")
    found_calls: dict[int, int] = Field({}, description="by NFE, the calls that finding them took, where it is known")
    refine_found: bool = Field(True, description="whether a line says what refining the found ones gives")
    seed: NonNegativeInt = 0

    @field_validator("methods")
    @classmethod
    def _methods_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # The best stock schedule is where the learned ones start.
        return tuple(dict.fromkeys(("presets", *known_names(names, "method", METHODS))))

    @property
    def subject(self) -> Subject:
        """Model, features, reference and conditions."""
        return Subject(self.model, self.features, self.reference, self.conditions)

    @property
    def screen(self) -> Rung:
        """Where each method's best is chosen."""
        return Rung("search", "moments", self.screen_images, self.seed)

    @property
    def look(self) -> Rung:
        """Where many are looked at first; on the same noise."""
        return Rung("look", "moments", max(2, self.screen_images // LOOK), self.seed)

    @property
    def report(self) -> Rung:
        """Where the chosen ones are judged, on noise that chose nothing."""
        return Rung("report", "moments", self.report_images, self.seed + REPORT_SEED_OFFSET)

    @property
    def first_report(self) -> Rung:
        """The part of the report's images that all chosen ones see."""
        return replace(self.report, name="first report", images=max(2, self.report_images // LOOK))

    @property
    def seeds(self) -> dict[str, int]:
        """Seed of each rung and of refinement's noise."""
        return {"search": self.screen.seed, "refinement": self.plan.noise_seed, "report": self.report.seed}


def calls(settings: PeersSettings) -> int:
    """Denoiser calls from nothing, at most."""
    teacher = parse_schedule(settings.teacher, find_model(settings.model).noise).nfe
    found = [SolverSchedule.from_json(text).nfe for text in settings.found]
    total = (POINTS - 1) * SAMPLES if "gits" in settings.methods else 0
    for nfe in settings.nfes:
        learned = settings.plan.calls(nfe, teacher) + 3 * nfe * settings.screen_images
        for method in settings.methods:
            if method == "presets":
                total += len(SOLVERS) * len(settings.grids) * nfe * settings.screen_images
            elif method == "gits":
                total += 2 * len(WEIGHTS) * len(SOLVERS) * nfe * settings.screen_images
            else:
                total += learned if method in LEARNED else settings.budget
        given = sum(n == nfe for n in found)
        total += given * (settings.refine_found * learned + nfe * settings.screen_images)
        total += (len(settings.methods) + (1 + settings.refine_found) * given) * nfe * settings.report_images
    return total
