"""How large a search is: what its settings leave open, by its budget, and the least budget that makes sense."""

from __future__ import annotations

from typing import NamedTuple

from fewstep.errors import ConfigurationError
from fewstep.pipeline.settings import POPULATION, SearchSettings
from fewstep.tasks.measured_settings import FRECHET
from fewstep.tasks.work import GROUP

# An NFE's share pays for at least so many evaluations of the main rung, where images are not given.
JUDGED = 25
MOST_JUDGED = 1000
TUNING = 0.45
# Proposals of its own that a search makes at least at each NFE, and presets that it looks at.
LEAST_PROPOSALS, LEAST_PRESETS = 5, 6
# Of the budget, for the report; the images of a row, at least as many as an interval needs.
REPORT = 0.5
LEAST_REPORTED, MOST_REPORTED = 750, 10_000
GENERATIONS, LEAST_POPULATION = 8, 6
# Of what is screened, at most and at least.
KEPT, LEAST_KEPT = 0.25, 0.05
RANDOM_SHARE, MOST_RANDOM = 1 / 6, 24
MOST_IMAGES_OF_FINALS = 10_000


class Plan(NamedTuple):
    """Denoiser calls of an NFE by what they are for, and the proposals that the search makes of its own."""

    presets: int
    search: int
    tuning: int
    finals: int
    proposals: int


def can_tune(s: SearchSettings) -> bool:
    """Whether the settings leave elites to be tuned on moments; whether the features do is the model's affair."""
    return s.moves_schedule and s.objective == FRECHET


def rows_at_most(s: SearchSettings) -> int:
    """How many schedules of an NFE a report evaluates at most: found, best presets of both kinds, own scheduler."""
    return 4 if s.report_presets else 1


def sized(s: SearchSettings) -> SearchSettings:
    """The settings with every size that they leave open."""
    mean = sum(s.nfes) / len(s.nfes)
    share = s.budget / len(s.nfes)
    refine = s.refine if s.refine is not None else TUNING * can_tune(s)
    affordable = share / mean
    groups = int(affordable / JUDGED) // (2 * GROUP) * 2
    judged = s.frechet_images or min(MOST_JUDGED, max(1, groups) * GROUP)
    look = s.look_images or min(GROUP, judged)
    screen = s.screen
    if screen == "auto" and can_pair(s, judged):
        screen = "paired"
    elif screen == "paired" and not can_pair(s, judged):
        raise ConfigurationError(
            f"a paired screen of {s.paired_images} images needs schedules that are judged on {GROUP} or twice as many "
            f"at least, not {judged}, and presets whose share of the budget, {s.presets}, pays for that: raise "
            "--budget, or choose another --screen"
        )
    if screen == "auto" and (look >= judged or s.space != "schedule"):
        screen = "none" if s.space == "schedule" else "distance"
    reported = REPORT * s.budget / (sum(s.nfes) * rows_at_most(s))
    report = s.report_images or int(min(MOST_REPORTED, max(LEAST_REPORTED, reported // GROUP * GROUP)))
    whole = s.model_copy(
        update={
            "refine": refine,
            "screen": screen,
            "look_images": look,
            "frechet_images": judged,
            "report_images": report,
            "random_trials": 0,
            "keep": s.keep or (most_kept(s.paired_images, judged) if screen == "paired" else KEPT),
        }
    )
    proposals = plan(whole, max(s.nfes)).proposals
    random = min(MOST_RANDOM, round(RANDOM_SHARE * proposals)) if s.random_trials is None else s.random_trials
    # Some eight generations, as the published searches have; fewer would be little else than chance.
    population = s.population or min(POPULATION, max(LEAST_POPULATION, proposals // GENERATIONS))
    return whole.model_copy(update={"random_trials": random, "population": population})


def most_kept(screened: int, judged: int) -> float:
    """The share of a paired screen that goes on: judging them takes twice what screening all does, or less."""
    return min(KEPT, max(LEAST_KEPT, 2 * screened / judged))


def can_pair(s: SearchSettings, judged: int) -> bool:
    """Whether looks are paired: of a Frechet distance of whole groups, and presets pay for a control beside them."""
    if s.space != "schedule" or s.objective.partition(":")[0] != FRECHET or not 2 <= s.paired_images <= judged // 2:
        return False
    images = judged + (1 + LEAST_PRESETS) * s.paired_images
    return judged >= GROUP and max(s.nfes) * images <= s.presets * s.budget / len(s.nfes)


def first_look(s: SearchSettings) -> int:
    """Images of a preset's first look: fewer than those of the screen, which it would be otherwise."""
    assert s.look_images is not None
    assert s.frechet_images is not None
    if can_pair(s, s.frechet_images):
        return s.paired_images
    return max(2, min(s.preset_images, s.look_images // 2))


def plan(s: SearchSettings, nfe: int) -> Plan:
    """How the share of an NFE is to be spent, of sized settings."""
    assert s.refine is not None
    assert s.frechet_images is not None
    assert s.look_images is not None
    share = s.budget // len(s.nfes)
    finalists = s.finalists if s.space == "schedule" else s.front
    finals = nfe * finalists * s.finalist_images if s.finalist_images else int(s.finals * share)
    tuning, presets = int(s.refine * share), int(s.presets * share) if s.space == "schedule" else 0
    search = share - presets - tuning - finals
    screened = {"paired": s.paired_images, "distance": s.distance_images, "none": 0}.get(s.screen, s.look_images)
    grown = s.frechet_images - (0 if s.screen in ("paired", "distance", "none") else screened)
    keep = 1.0 if s.screen == "none" else s.keep or KEPT
    return Plan(presets, search, tuning, finals, max(0, int(search / (nfe * (screened + keep * grown)))))


def check_budget(asked: SearchSettings, extra: int = 0) -> None:
    """ConfigurationError where settings leave no search worth the name; `extra` calls of a teacher go before it."""
    if _suffices(asked, asked.budget, extra):
        return
    least = least_budget(asked, extra)
    looked = f" and {LEAST_PRESETS} presets" if asked.space == "schedule" else ""
    raise ConfigurationError(
        f"a budget of {asked.budget:,} calls is too small for NFE {', '.join(map(str, asked.nfes))}: {least:,} would "
        f"buy {LEAST_PROPOSALS} proposals{looked} at each; raise --budget, search fewer "
        "numbers of calls, or judge on fewer images (--frechet-images)"
    )


def _suffices(asked: SearchSettings, budget: int, extra: int) -> bool:
    """Whether that budget pays the least number of proposals, and of first looks at presets, at each NFE."""
    try:
        s = sized(asked.model_copy(update={"budget": max(1, budget)}))
    except ConfigurationError:
        return False
    left = budget if s.screen == "paired" else budget - extra
    plans = {nfe: plan(s.model_copy(update={"budget": max(1, left)}), nfe) for nfe in s.nfes}
    looked = s.space != "schedule" or all(p.presets // (n * first_look(s)) >= LEAST_PRESETS for n, p in plans.items())
    return looked and all(p.proposals >= LEAST_PROPOSALS for p in plans.values())


def least_budget(asked: SearchSettings, extra: int = 0) -> int:
    """The smallest budget that is not refused for these settings, rounded up to two digits."""
    low, high = 1, 1 << 50
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _suffices(asked, middle, extra) else (middle + 1, high)
    unit = 10 ** max(0, len(str(low)) - 2)
    return int(-(-low // unit) * unit)
