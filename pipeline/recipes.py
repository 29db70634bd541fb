"""Named searches: readable functions instead of piles of flags."""

from __future__ import annotations

from fewstep.errors import ConfigurationError
from fewstep.pipeline.settings import SearchSettings


def digits_demo() -> SearchSettings:
    """Three to five calls on the bundled digits model: minutes on two cores."""
    return SearchSettings.build(
        study="digits-demo",
        surrogate="encoder",
        model="digits-ddpm",
        nfes=(3, 4, 5),
        budget=420_000,
        distance_images=100,
        frechet_images=1000,
        finalist_images=2000,
        finalists=4,
        keep=0.15,
        report_images=4000,
    )


def fashion_flow() -> SearchSettings:
    """The latent flow without labels, 3 to 10 calls. `fewstep flow-table` compares what it finds with all peers."""
    return SearchSettings.build(
        study="fashion-flow",
        surrogate="encoder",
        model="fashion-lfm",
        nfes=(3, 4, 5, 6, 8, 10),
        budget=500_000,
        teacher="unipc-2-bh2/karras-zero@40",
        distance_images=64,
        frechet_images=500,
        finalist_images=2000,
        finalists=3,
        keep=0.2,
        grids=("uniform-t-zero", "quadratic-zero", "karras-zero"),
        preset_grids=1,
        report_images=1000,
        report_presets=False,
    )


def fashion_flow_guided() -> SearchSettings:
    """The same with labels, every class alike, the scale of guidance among the decisions.

    The range is about 1, near which this model's Frechet distance is lowest; labels become surer above it.
    """
    fields = fashion_flow().model_dump() | {
        "study": "fashion-flow-guided",
        "conditions": {"labels": "balanced", "guidance": 1.0},
        "guidance_range": (0.8, 1.2),
    }
    return SearchSettings.build(**fields)


def fashion_front() -> SearchSettings:
    """Every class alike, the whole front from 3 to 10 calls: what `fewstep peers` compares with every peer.

    Candidates are screened by a small Frechet distance, not by the distance to a teacher: on this model the latter
    says nothing about which of two good schedules is better (docs/refinement.md).
    """
    return SearchSettings.build(
        study="fashion-front",
        surrogate="encoder",
        model="fashion-ddpm",
        nfes=(3, 4, 5, 6, 8, 10),
        conditions={"labels": "balanced"},
        budget=1_800_000,
        screen="frechet",
        frechet_images=1000,
        finalist_images=3000,
        finalists=3,
        keep=0.2,
        random_trials=8,
        grids=("uniform-t-zero", "quadratic-zero", "karras-zero"),
        preset_grids=1,
        refine=0.4,
        refined_elites=1,
        refine_to="reference",
        report_presets=False,
    )


def fashion_front_moments() -> SearchSettings:
    """The same front tuned on the search's own images (docs/refinement.md), to be started with `--warm-start` of it."""
    fields = fashion_front().model_dump() | {
        "study": "fashion-front-moments",
        "surrogate": "none",
        "budget": 1_200_000,
        "preset_grids": 0,
        "refine": 0.6,
        "refined_elites": 3,
        "refine_to": "moments",
    }
    return SearchSettings.build(**fields)


def fashion_front_equal() -> SearchSettings:
    """The whole front in one search with the 150,000 calls an NFE that the searches of `fewstep peers` have."""
    fields = fashion_front_moments().model_dump() | {
        "study": "fashion-front-equal",
        "budget": 900_000,
        "refined_elites": 5,
    }
    return SearchSettings.build(**fields)


RECIPES = {
    "digits-demo": digits_demo,
    "fashion-front": fashion_front,
    "fashion-front-moments": fashion_front_moments,
    "fashion-front-equal": fashion_front_equal,
    "fashion-flow": fashion_flow,
    "fashion-flow-guided": fashion_flow_guided,
}


def search_recipe(name: str) -> SearchSettings:
    """The recipe of that name; ConfigurationError names the valid ones."""
    if name not in RECIPES:
        raise ConfigurationError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
