"""Named searches: readable functions instead of piles of flags."""

from __future__ import annotations

from fewstep.errors import ConfigurationError
from fewstep.pipeline.settings import SearchSettings


def digits_demo() -> SearchSettings:
    """Three to five calls on the bundled digits model: minutes on two cores."""
    return SearchSettings.build(
        study="digits-demo",
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


RECIPES = {"digits-demo": digits_demo}


def search_recipe(name: str) -> SearchSettings:
    """The recipe of that name; ConfigurationError names the valid ones."""
    if name not in RECIPES:
        raise ConfigurationError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
